//! `--store`: where a store is, as text. Endpoints and credentials come from the environment, by the names that the
//! clouds' own tools use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::local::LocalFileSystem;
use object_store::{DynObjectStore, ObjectStore};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `file:PATH`
    Folder(PathBuf),
    /// `s3://BUCKET[/PREFIX]`
    S3 { bucket: String, prefix: String },
    /// `az://CONTAINER[/PREFIX]`
    Azure { container: String, prefix: String },
}

const FORMS: &str = "file:PATH, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]";

#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    #[error("{0:?} names no store; write {FORMS}")]
    Malformed(String),
    #[error("file:{0}: the path must be absolute")]
    Relative(String),
    #[error("cannot make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{location} cannot be opened; S3 takes AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT \
         from the environment, Azure AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and AZURE_STORAGE_ENDPOINT, \
         and both take AWS_ALLOW_HTTP or AZURE_ALLOW_HTTP"
    )]
    Cloud {
        location: String,
        #[source]
        source: object_store::Error,
    },
}

impl Location {
    /// The store's objects, and the prefix of ours. Nothing is asked over a network yet; a folder is made.
    pub fn open(&self) -> Result<(Arc<DynObjectStore>, String), LocationError> {
        let cloud = |source| LocationError::Cloud { location: self.to_string(), source };
        Ok(match self {
            Self::Folder(path) => {
                let made = std::fs::create_dir_all(path);
                made.map_err(|source| LocationError::Folder { path: path.clone(), source })?;
                let folder = LocalFileSystem::new_with_prefix(path).map_err(cloud)?;
                (Arc::new(folder.with_fsync(true)) as Arc<dyn ObjectStore>, String::new())
            }
            Self::S3 { bucket, prefix } => {
                wire::prefer_our_tls();
                let bucket = AmazonS3Builder::from_env().with_bucket_name(bucket);
                (Arc::new(bucket.build().map_err(cloud)?), prefix.clone())
            }
            Self::Azure { container, prefix } => {
                wire::prefer_our_tls();
                let container = MicrosoftAzureBuilder::from_env().with_container_name(container);
                (Arc::new(container.build().map_err(cloud)?), prefix.clone())
            }
        })
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let malformed = || LocationError::Malformed(text.to_owned());
        let (scheme, rest) = text.split_once(':').ok_or_else(malformed)?;
        if scheme == "file" {
            return match Path::new(rest).is_absolute() {
                true => Ok(Self::Folder(rest.into())),
                false => Err(LocationError::Relative(rest.to_owned())),
            };
        }
        let rest = rest.strip_prefix("//").ok_or_else(malformed)?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, prefix) = (name.to_owned(), prefix.trim_matches('/').to_owned());
        let odd = |c: char| c.is_whitespace() || c.is_control() || "?#*".contains(c);
        if name.is_empty() || rest.contains(odd) || prefix.split('/').any(|part| part == "..") {
            return Err(malformed());
        }
        match scheme {
            "s3" => Ok(Self::S3 { bucket: name, prefix }),
            "az" => Ok(Self::Azure { container: name, prefix }),
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |prefix: &str| if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        match self {
            Self::Folder(path) => write!(f, "file:{}", path.display()),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}{}", slash(prefix)),
            Self::Azure { container, prefix } => write!(f, "az://{container}{}", slash(prefix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_survive_parsing_and_printing() {
        for text in ["file:/srv/store", "s3://bucket", "s3://bucket/a/b", "az://box/x"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        assert_eq!("s3://bucket/".parse::<Location>().unwrap().to_string(), "s3://bucket");
    }

    #[test]
    fn anything_else_is_refused_by_its_text() {
        for text in
            ["", "bucket", "s3:bucket", "s3://", "s3:///x", "gs://b", "file:store", "az://b/../c", "s3://b c"]
        {
            let why = text.parse::<Location>().unwrap_err().to_string();
            assert!(why.contains(text.trim_start_matches("file:")), "{why}");
        }
    }
}
