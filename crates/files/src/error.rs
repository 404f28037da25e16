use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(
        "the state directory {} can't be used: {why}; make it before the app is started, or leave --state-dir out",
        path.display()
    )]
    Directory { path: PathBuf, why: String },
    #[error(
        "{} is on another file system than the state directory that it is in; name it with a --state-dir of its own",
        path.display()
    )]
    OtherFileSystem { path: PathBuf },
    #[error(
        "there are more directories than the kernel watches ({} was one too many); raise fs.inotify.max_user_watches",
        path.display()
    )]
    Watches { path: PathBuf },
    #[error("{} is a device, and devices can't be moved to another host; keep it outside the state directory", path.display())]
    Device { path: PathBuf },
    #[error(
        "{} has the attribute {name}, and extended attributes, ACLs and capabilities of files are not replicated; take it \
         off the file, or keep the file outside the state directory",
        path.display()
    )]
    Attribute { path: PathBuf, name: String },
    #[error("cannot {what} {}", path.display())]
    Kernel {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What came from the primary. The reason names what is wrong with it.
    #[error("the changes of files make no sense: {0}")]
    Senseless(String),
    #[error("{} has {free} free bytes, and the epoch writes {wanted}; make room there", path.display())]
    NoRoom { path: PathBuf, free: u64, wanted: u64 },
}

impl FilesError {
    /// Whether somebody has to change something, rather than that something went wrong.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Directory { .. }
            | Self::OtherFileSystem { .. }
            | Self::Watches { .. }
            | Self::Device { .. }
            | Self::Attribute { .. } => true,
            Self::Kernel { .. } | Self::Senseless(_) | Self::NoRoom { .. } => false,
        }
    }
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> FilesError {
    move |why| FilesError::Kernel { what, path: path.to_owned(), source: why.into() }
}
