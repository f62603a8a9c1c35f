//! A simulated place for objects, with what real ones do to us: they refuse, are full, fall silent,
//! rot what they keep, or go away between any two calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::objects::{ObjectError, ObjectFault, Objects, Pieces};

/// Objects in memory. Clones are handles to the same ones.
#[derive(Clone, Default)]
pub struct SimObjects {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// Calls so far.
    calls: u64,
    /// From this call on nobody answers.
    gone_at: Option<u64>,
    /// What every call fails with.
    fault: Option<ObjectFault>,
    /// What is put is kept with a wrong byte.
    rots: bool,
}

impl SimObjects {
    /// An empty place that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every call fails like this from now on; `None`: none does.
    pub fn set_fault(&self, fault: Option<ObjectFault>) {
        self.lock().fault = fault;
    }

    /// What is put from now on is kept with a wrong byte.
    pub fn set_rot(&self, rots: bool) {
        self.lock().rots = rots;
    }

    /// From the call of this number on, counted from 0 and from now, nobody answers; `None`: the
    /// place is back. A call that is cut off has done what it was to do, or not: in turns.
    pub fn go_away_at(&self, call: Option<u64>) {
        let mut state = self.lock();
        state.gone_at = call;
        state.calls = 0;
    }

    /// Names of all objects, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Content of an object.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().objects.get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a call, or fails as scripted.
    fn call<T>(
        &self,
        doing: &'static str,
        name: &str,
        act: impl FnOnce(&mut State) -> Result<T, ObjectFault>,
    ) -> Result<T, ObjectError> {
        let mut state = self.lock();
        let call = state.calls;
        state.calls += 1;
        let done = match (state.fault, state.gone_at) {
            (Some(fault), _) => Err(fault),
            (None, Some(gone_at)) if call >= gone_at => {
                if call == gone_at && call.is_multiple_of(2) {
                    // It is done all the same; only its answer is lost.
                    let _ = act(&mut state);
                }
                Err(ObjectFault::Unreachable)
            }
            (None, _) => act(&mut state),
        };
        let (place, name, why) = (self.describe(), name.to_owned(), String::new());
        done.map_err(|fault| ObjectError { place, doing, name, fault, why })
    }
}

impl Objects for SimObjects {
    fn describe(&self) -> String {
        "simulated objects".to_owned()
    }

    fn put(&self, name: &str, pieces: &mut Pieces<'_>) -> Result<(), ObjectError> {
        let mut content = Vec::new();
        let read = loop {
            match pieces() {
                Ok(Some(piece)) => content.extend(piece),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.to_string()),
            }
        };
        let put = self.call("put", name, |state| {
            if read.is_err() {
                return Err(ObjectFault::Source);
            }
            if state.objects.contains_key(name) {
                return Err(ObjectFault::Exists);
            }
            if state.rots
                && let Some(last) = content.last_mut()
            {
                *last ^= 1;
            }
            state.objects.insert(name.to_owned(), content);
            Ok(())
        });
        put.map_err(|error| ObjectError { why: read.err().unwrap_or_default(), ..error })
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError> {
        self.call("read", name, |state| {
            let content = state.objects.get(name).ok_or(ObjectFault::Missing)?;
            let range = range.start as usize..range.end as usize;
            content.get(range).map(<[u8]>::to_vec).ok_or(ObjectFault::Failed)
        })
    }

    fn bytes(&self, name: &str) -> Result<Option<u64>, ObjectError> {
        self.call("look at", name, |state| {
            Ok(state.objects.get(name).map(|content| content.len() as u64))
        })
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.call("delete", name, |state| {
            state.objects.remove(name);
            Ok(())
        })
    }
}
