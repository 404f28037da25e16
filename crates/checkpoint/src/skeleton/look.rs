//! A look at a skeleton from outside, by somebody who makes another of it while this one goes on.

use std::fs::File;
use std::io;

use image::layout::{Layout, ObjectKey, SharedObject};

use super::Skeleton;

/// What is in a skeleton, and the files to read it from. They show it as it becomes: an epoch that is applied
/// meanwhile is seen in part, and has to be applied to what was read.
#[derive(Debug)]
pub struct Look {
    pub layout: Layout,
    /// By address.
    pub memory: File,
    pub pagemap: File,
    pub objects: Vec<(ObjectKey, File)>,
}

impl Skeleton<'_> {
    pub fn look(&self) -> io::Result<Look> {
        let objects: Vec<SharedObject> = self.objects.values().map(|held| held.object.clone()).collect();
        let (mappings, guards) = (self.mappings.clone(), self.guards.clone());
        let layout = Layout { space: 0, pid: self.number, mappings, guards, objects };
        let files = self.objects.iter().map(|(key, held)| Ok((*key, held.file.try_clone()?)));
        Ok(Look {
            layout,
            memory: self.memory.try_clone()?,
            pagemap: File::open(format!("/proc/{}/pagemap", self.pid))?,
            objects: files.collect::<io::Result<_>>()?,
        })
    }
}
