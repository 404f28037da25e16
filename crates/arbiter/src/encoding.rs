//! The register as bytes: one line of JSON with a checksum, the same in every back-end.

use image::Register;
use serde::{Deserialize, Serialize};

const SCHEMA: u32 = 1;
/// Far more than a register with a hundred members; what is longer is none of ours.
pub(crate) const LEN_BYTES_MAX: usize = 64 * 1024;
const NAME_LEN_MAX: usize = 100;

/// The checksum covers the JSON text of the register.
#[derive(Serialize, Deserialize)]
struct Line {
    schema: u32,
    crc32: u32,
    register: String,
}

/// The same value always gives the same bytes.
pub(crate) fn encode(register: &Register) -> Vec<u8> {
    let register = serde_json::to_string(register).expect("a register is plain data");
    let line = Line { schema: SCHEMA, crc32: crc32fast::hash(register.as_bytes()), register };
    let mut bytes = serde_json::to_vec(&line).expect("a line is plain data");
    bytes.push(b'\n');
    bytes
}

/// An error says what is wrong with it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Register, String> {
    if bytes.len() > LEN_BYTES_MAX {
        return Err(format!("it is longer than {LEN_BYTES_MAX} bytes"));
    }
    let line: Line = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if line.schema != SCHEMA {
        return Err(format!("its schema is {}, this version reads {SCHEMA}", line.schema));
    }
    if line.crc32 != crc32fast::hash(line.register.as_bytes()) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(&line.register).map_err(|error| error.to_string())
}

/// Whether an app of this name can have a register: it becomes part of a file's name and of a key.
pub(crate) fn is_name(app: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !app.is_empty() && !app.starts_with('.') && app.len() <= NAME_LEN_MAX && app.chars().all(fits)
}
