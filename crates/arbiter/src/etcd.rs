//! The register in etcd: the key `PREFIX/APP`, one transaction per swap.
//!
//! A swap compares the key's value, so that it needs no read before it. Should the same register have been written as
//! other bytes, by another release, the transaction loses and shows it, and is made again on the revision that was
//! seen. Reads are etcd's linearizable ones.

use std::time::Instant;

use image::Register;
use wire::{EtcdClient, EtcdExpected, EtcdSwap, EtcdTls, EtcdValue};

use crate::encoding::{decode, encode, is_name};
use crate::members::{Dial, Members};
use crate::spec::EtcdSpec;
use crate::{Arbiter, ArbiterError, Swap};

#[derive(Debug)]
pub struct EtcdArbiter {
    members: Members<Dialler>,
    prefix: String,
}

#[derive(Debug, Clone)]
struct Dialler {
    tls: Option<EtcdTls>,
}

impl Dial for Dialler {
    type Client = EtcdClient;

    async fn dial(&self, address: &str) -> Result<EtcdClient, String> {
        EtcdClient::connect(address, self.tls.as_ref()).await.map_err(|why| why.to_string())
    }
}

impl EtcdArbiter {
    /// Nothing is connected before the first call.
    pub fn new(spec: &EtcdSpec) -> Result<Self, ArbiterError> {
        let register = spec.to_string();
        let load = |tls: &crate::spec::EtcdFiles| {
            let pair = tls.pair.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
            EtcdTls::load(&tls.ca, pair)
        };
        let tls = spec.files.as_ref().map(load).transpose();
        let tls =
            tls.map_err(|why| ArbiterError::Setup { register: register.clone(), why: why.to_string() })?;
        let members = Members::new(register, &spec.endpoints, Dialler { tls })?;
        Ok(Self { members, prefix: spec.prefix.clone() })
    }

    fn key(&self, app: &str) -> Result<String, ArbiterError> {
        if is_name(app) {
            Ok(format!("{}/{app}", self.prefix))
        } else {
            Err(ArbiterError::BadName(app.to_owned()))
        }
    }

    fn understand(&self, key: &str, found: Option<&EtcdValue>) -> Result<Option<Register>, ArbiterError> {
        let decoded = found.map(|found| decode(&found.value)).transpose();
        decoded.map_err(|why| ArbiterError::Corrupt {
            register: format!("{key} in {}", self.members.register()),
            why,
        })
    }

    fn compare_and_put(
        &mut self,
        key: &str,
        expected: EtcdExpected,
        new: &[u8],
        deadline: Instant,
    ) -> Result<EtcdSwap, ArbiterError> {
        let (key, new) = (key.to_owned(), new.to_vec());
        self.members.ask(deadline, move |client| {
            let (key, expected, new) = (key.clone(), expected.clone(), new.clone());
            async move { client.swap(&key, expected, new).await.map_err(|why| why.to_string()) }
        })
    }
}

impl Arbiter for EtcdArbiter {
    fn read(&mut self, app: &str, deadline: Instant) -> Result<Option<Register>, ArbiterError> {
        let key = self.key(app)?;
        let asked = key.clone();
        let found = self.members.ask(deadline, move |client| {
            let key = asked.clone();
            async move { client.get(&key).await.map_err(|why| why.to_string()) }
        })?;
        self.understand(&key, found.as_ref())
    }

    fn swap(
        &mut self,
        app: &str,
        expected: Option<&Register>,
        new: Register,
        deadline: Instant,
    ) -> Result<Swap, ArbiterError> {
        assert!(new.follows(expected), "the register of {app} can't go from {expected:?} to {new:?}");
        let (key, bytes) = (self.key(app)?, encode(&new));
        let mut compare = expected.map_or(EtcdExpected::Absent, |value| EtcdExpected::Value(encode(value)));
        loop {
            let found = match self.compare_and_put(&key, compare, &bytes, deadline)? {
                EtcdSwap::Won => return Ok(Swap::Won),
                EtcdSwap::Lost(found) => found,
            };
            let current = self.understand(&key, found.as_ref())?;
            match (found, current) {
                // An attempt whose answer was lost has won.
                (_, Some(current)) if current == new => return Ok(Swap::Won),
                (Some(found), Some(current)) if Some(&current) == expected => {
                    compare = EtcdExpected::ModRevision(found.mod_revision);
                }
                (_, current) => return Ok(Swap::Lost(current)),
            }
        }
    }
}
