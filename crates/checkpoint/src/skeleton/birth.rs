//! A fresh process becomes a skeleton: everything goes but the vdso, which moves to where the app has it.

use image::Range;
use image::layout::{Backing, Layout};
use tracee::{Call, Frozen};

use super::ApplyError;

const ARCH_MAP_VDSO_64: u64 = 0x2003;
const HIGHEST: u64 = 0x7fff_ffff_f000;

/// Unmaps all that the process was born with; returns where our own memory lies.
pub fn hollow_out(frozen: &mut Frozen<'_>, pid: i32, layout: &Layout) -> Result<Range, ApplyError> {
    let avoid: Vec<(u64, u64)> = layout.mappings.iter().map(|m| (m.range.start, m.range.end)).collect();
    let scratch = frozen.make_room(pid, &avoid)?;
    unregister_rseq(frozen, pid)?;
    let (wanted, present) = (vdso_in(layout), vdso_now(pid)?);
    let mut calls = Vec::new();
    let keep = [Range::new(scratch.0, scratch.1)];
    let mut at = 0;
    for kept in keep.into_iter().chain([Range::new(HIGHEST, HIGHEST)]) {
        if kept.start > at {
            calls.push(Call::new(libc::SYS_munmap, [at, kept.start - at]));
        }
        at = kept.end;
    }
    if let Some(wanted) = wanted {
        if present.is_none_or(|present| present.len_bytes() != wanted.len_bytes()) {
            return Err(ApplyError::File {
                path: "the vdso".to_owned(),
                why: "another size than on the primary: run the same kernel on both hosts".to_owned(),
            });
        }
        calls.push(Call::new(libc::SYS_arch_prctl, [ARCH_MAP_VDSO_64, wanted.start]));
    }
    let results = frozen.remote(pid)?.calls(&calls)?;
    for (call, result) in calls.iter().zip(results) {
        if result < 0 {
            let (what, address) = ("clear a place", call.arguments[0]);
            return Err(ApplyError::Kernel { what, address, source: sys::kernel::error(result) });
        }
    }
    let now = vdso_now(pid)?;
    if now != wanted {
        let address = wanted.map_or(0, |range| range.start);
        let source = std::io::Error::other("the kernel put the vdso elsewhere");
        return Err(ApplyError::Kernel { what: "place the vdso", address, source });
    }
    Ok(Range::new(scratch.0, scratch.1))
}

/// N.B. the kernel writes to a registered area whenever the thread was moved to another CPU: with the area
/// unmapped that kills the process, some time later.
fn unregister_rseq(frozen: &mut Frozen<'_>, pid: i32) -> Result<(), ApplyError> {
    const UNREGISTER: u64 = 1;
    let failed = |source| ApplyError::Kernel { what: "see the rseq registration", address: 0, source };
    let present = sys::ptrace::rseq_configuration(pid).map_err(failed)?;
    if present.address != 0 {
        let arguments = [present.address, present.size.into(), UNREGISTER, present.signature.into()];
        frozen.remote(pid)?.call("unregister rseq", libc::SYS_rseq, arguments)?;
    }
    Ok(())
}

/// The vdso with the pages of data before it, which belong together.
fn vdso_in(layout: &Layout) -> Option<Range> {
    let special = |backing: &Backing| matches!(backing, Backing::Vdso | Backing::Vvar | Backing::VvarClock);
    let ranges =
        layout.mappings.iter().filter(|mapping| special(&mapping.backing)).map(|mapping| mapping.range);
    ranges.reduce(|all, range| Range::new(all.start.min(range.start), all.end.max(range.end)))
}

fn vdso_now(pid: i32) -> Result<Option<Range>, ApplyError> {
    let failed = |source| ApplyError::Kernel { what: "read the mappings", address: 0, source };
    let text = std::fs::read(format!("/proc/{pid}/maps")).map_err(failed)?;
    let lines = crate::memory::parse_maps(&text).map_err(|why| failed(std::io::Error::other(why)))?;
    let special = |name: &[u8]| matches!(name, b"[vdso]" | b"[vvar]" | b"[vvar_vclock]");
    let ranges = lines.iter().filter(|line| special(line.name)).map(|line| line.range);
    Ok(ranges.reduce(|all, range| Range::new(all.start.min(range.start), all.end.max(range.end))))
}
