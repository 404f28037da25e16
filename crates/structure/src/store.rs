//! The structures as a manager keeps them.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::change::{Change, Malformed};
use crate::frame::Frames;

type Bytes = Box<[u8]>;

/// Maps and values, each by its name. A map is there from its first put on, and stays when it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    maps: BTreeMap<Bytes, BTreeMap<Bytes, Bytes>>,
    values: BTreeMap<Bytes, Bytes>,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cursor {
    #[default]
    Begin,
    /// In the map with this name, behind this key.
    Behind(Bytes, Bytes),
    /// The maps are done, and the values up to this one.
    Values(Option<Bytes>),
    End,
}

impl Store {
    pub fn apply(&mut self, change: Change<'_>) {
        match change {
            Change::Put { name, key, value } => {
                let map = match self.maps.get_mut(name) {
                    Some(map) => map,
                    None => self.maps.entry(name.into()).or_default(),
                };
                match map.get_mut(key) {
                    // The most common change by far, without a new allocation.
                    Some(held) if held.len() == value.len() => held.copy_from_slice(value),
                    Some(held) => *held = value.into(),
                    None => drop(map.insert(key.into(), value.into())),
                }
            }
            Change::Delete { name, key } => {
                if let Some(map) = self.maps.get_mut(name) {
                    map.remove(key);
                }
            }
            Change::Store { name, value } => drop(self.values.insert(name.into(), value.into())),
        }
    }

    /// Applies the changes of these frames, in order, and says how many they were. On an error none is applied.
    pub fn apply_all(&mut self, frames: &[u8]) -> Result<u64, Malformed> {
        let count = check_all(frames)?;
        let mut frames = Frames::of(frames);
        while let Some(frame) = frames.take()? {
            self.apply(Change::parse(frame)?);
        }
        Ok(count)
    }

    /// Appends about `bytes` of a snapshot, as changes, from where `cursor` stands.
    ///
    /// Between two pieces changes may be applied, if they are sent, too, after the piece before and in front of the
    /// next: a change of what was sent follows it, and one of what was not is overtaken by a newer piece.
    pub fn piece(&self, cursor: Cursor, bytes: usize, out: &mut Vec<u8>) -> Cursor {
        let end = out.len() + bytes;
        let (name, key) = match cursor {
            Cursor::Begin => (None, None),
            Cursor::Behind(name, key) => (Some(name), Some(key)),
            Cursor::Values(last) => return self.piece_of_values(last, end, out),
            Cursor::End => return Cursor::End,
        };
        let from = name.as_ref().map_or(Bound::Unbounded, |name| Bound::Included(name.clone()));
        for (map_name, map) in self.maps.range((from, Bound::Unbounded)) {
            // Only the map that the last piece ended in is entered in its middle.
            let behind = key.as_ref().filter(|_| name.as_ref() == Some(map_name));
            let from = behind.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
            for (key, value) in map.range((from, Bound::Unbounded)) {
                Change::Put { name: map_name, key, value }.append(out);
                if out.len() >= end {
                    return Cursor::Behind(map_name.clone(), key.clone());
                }
            }
        }
        self.piece_of_values(None, end, out)
    }

    fn piece_of_values(&self, last: Option<Bytes>, end: usize, out: &mut Vec<u8>) -> Cursor {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        for (name, value) in self.values.range((from, Bound::Unbounded)) {
            Change::Store { name, value }.append(out);
            if out.len() >= end {
                return Cursor::Values(Some(name.clone()));
            }
        }
        Cursor::End
    }

    /// What the map `name` has at `key`.
    pub fn get(&self, name: &[u8], key: &[u8]) -> Option<&[u8]> {
        self.maps.get(name)?.get(key).map(AsRef::as_ref)
    }

    pub fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.values.get(name).map(AsRef::as_ref)
    }
}

/// That these bytes are changes and nothing else, and how many.
pub fn check_all(bytes: &[u8]) -> Result<u64, Malformed> {
    let (mut frames, mut count) = (Frames::of(bytes), 0);
    while let Some(frame) = frames.take()? {
        Change::parse(frame)?;
        count += 1;
    }
    if frames.is_at_end() { Ok(count) } else { Err(Malformed::CutOff) }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use proptest::prelude::*;

    use super::*;

    const MAP: &[u8] = b"m";

    fn put(key: u8, value: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        Change::Put { name: MAP, key: &[key], value: &[value] }.append(&mut frame);
        frame
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u8, Vec<u8>),
        Delete(u8, u8),
        Store(u8, Vec<u8>),
    }

    impl Step {
        fn frame(&self) -> Vec<u8> {
            let mut frame = Vec::new();
            match self {
                Self::Put(name, key, value) => {
                    Change::Put { name: from_ref(name), key: from_ref(key), value }.append(&mut frame);
                }
                Self::Delete(name, key) => {
                    Change::Delete { name: from_ref(name), key: from_ref(key) }.append(&mut frame);
                }
                Self::Store(name, value) => Change::Store { name: from_ref(name), value }.append(&mut frame),
            }
            frame
        }
    }

    fn apply<'a>(store: &mut Store, steps: impl IntoIterator<Item = &'a Step>) {
        for step in steps {
            assert_eq!(store.apply_all(&step.frame()), Ok(1));
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let value = || proptest::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            4 => (0..3_u8, 0..20_u8, value()).prop_map(|(name, key, value)| Step::Put(name, key, value)),
            1 => (0..3_u8, 0..20_u8).prop_map(|(name, key)| Step::Delete(name, key)),
            1 => (0..3_u8, value()).prop_map(|(name, value)| Step::Store(name, value)),
        ]
    }

    proptest! {
        /// The stream of a full sync: pieces, and between them what changed meanwhile.
        #[test]
        fn pieces_with_the_changes_between_them_make_the_same_store(
            before in proptest::collection::vec(step(), 0..60),
            meanwhile in proptest::collection::vec(proptest::collection::vec(step(), 0..4), 0..60),
            bytes in 1..100_usize,
        ) {
            let mut store = Store::default();
            apply(&mut store, &before);
            let (mut copy, mut cursor, mut meanwhile) = (Store::default(), Cursor::default(), meanwhile.iter());
            while cursor != Cursor::End {
                let mut piece = Vec::new();
                cursor = store.piece(cursor, bytes, &mut piece);
                copy.apply_all(&piece).unwrap();
                let steps = meanwhile.next().into_iter().flatten();
                apply(&mut store, steps.clone());
                apply(&mut copy, steps);
            }
            // A map that was emptied before its piece was due is not there, and that is no difference.
            store.maps.retain(|_, map| !map.is_empty());
            copy.maps.retain(|_, map| !map.is_empty());
            prop_assert_eq!(copy, store);
        }

        #[test]
        fn a_suffix_that_is_applied_once_more_changes_nothing(
            log in proptest::collection::vec(step(), 0..60),
            from in 0..60_usize,
        ) {
            let mut store = Store::default();
            apply(&mut store, &log);
            let once = store.clone();
            apply(&mut store, log.iter().skip(from));
            prop_assert_eq!(store, once);
        }
    }

    #[test]
    fn a_bad_frame_behind_good_ones_applies_none() {
        let mut frames = put(1, 1);
        frames.extend_from_slice(&[1, 0, 0, 0, 99]);
        let mut store = Store::default();
        assert_eq!(store.apply_all(&frames), Err(Malformed::Kind(99)));
        assert_eq!(store, Store::default());
    }

    #[test]
    fn a_frame_that_is_cut_off_applies_nothing_before_it_either() {
        let frames = [put(1, 1), put(2, 2)].concat();
        let mut store = Store::default();
        assert_eq!(store.apply_all(&frames[..frames.len() - 1]), Err(Malformed::CutOff));
        assert_eq!(store, Store::default());
        assert_eq!(store.apply_all(&frames), Ok(2));
        assert_eq!(store.get(MAP, &[2]), Some([2].as_slice()));
    }
}
