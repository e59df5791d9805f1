//! What is registered beside the configuration file, and where that outlives the process.
//!
//! The store is written to before a request is answered. What there is differs from what is stored
//! only in the time between, in what ends with the daemon, and after a disk was full: each commit
//! writes all that differs, and one that failed is tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::control::config::{
    Aside, Config, ConfigErrors, ConfigFile, Fitted, Holder, Orphans, Overlay, ProcessIdentity,
    Record,
};
use crate::control::pools::{Pools, StoredPool};
use crate::control::store::{CommitError, Contents, Section, Store, StoreError, Unopened, Write};

use super::answers::{Answered, Answers};

/// When to try again to write what could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// The configuration file and what was registered besides.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) file: ConfigFile,
    /// What fits beside the file.
    pub(super) overlay: Overlay,
    /// What does not.
    pub(super) aside: Aside,
    pub(super) answers: Answers,
    pub(super) pools: Pools,
    store: Option<Box<dyn Store>>,
    stored: Stored,
    /// When to write what could not be written.
    pub(super) again_at: Option<Instant>,
}

/// What a process that was before has handed over of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Handed {
    pub(super) overlay: Overlay,
    /// A store that has them knows better.
    pub(super) pools: Pools,
}

/// What the store holds.
#[derive(Debug, Default)]
struct Stored {
    registered: Overlay,
    /// Ids and orders of answers.
    answers: HashMap<String, u64>,
    /// A commit has failed: it has to be looked what there is.
    unknown: bool,
}

impl Registry {
    /// What `store` holds and what another process has handed over, as far as it fits beside `file`;
    /// the rest is set aside. What is held by processes that have ended is gone: `take_up` says why one
    /// has, or takes it up.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or what it holds makes no sense.
    pub(super) fn open(
        file: ConfigFile,
        mut store: Option<Box<dyn Store>>,
        handed: &Handed,
        mut take_up: impl FnMut(ProcessIdentity) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        let (mut registered, mut answers, pools) = match &mut store {
            Some(store) => read(store.as_mut())?,
            None => (Overlay::default(), Answers::default(), handed.pools.clone()),
        };
        let stored = Stored {
            registered: registered.clone(),
            answers: answers.lasting(),
            unknown: false,
        };
        registered = registered.with(&handed.overlay);
        let holders: BTreeSet<_> = registered.holders().chain(answers.holders()).collect();
        let mut ended = BTreeSet::new();
        for holder in holders {
            let Holder::Process(process) = holder else {
                continue;
            };
            if let Err(why) = take_up(process) {
                info!(
                    pid = process.pid,
                    "what it held is registered no more: {why}"
                );
                ended.insert(holder);
            }
        }
        registered = registered.without_holders(|holder| ended.contains(&holder));
        answers.forget_held(|holder| ended.contains(&holder));
        let mut registry = Self {
            file,
            overlay: Overlay::default(),
            aside: Aside::default(),
            answers,
            pools,
            store,
            stored,
            again_at: None,
        };
        let (adopted, notes) = registry.file.adopt(&registered, Orphans::Stay);
        for note in notes {
            info!("registered at run time no more: {note}");
        }
        let fitted = registry.file.fit(&Overlay::default(), &adopted);
        registry.set(fitted);
        registry.release_leaked();
        registry.write();
        Ok(registry)
    }

    /// Has nothing changed at run time, as the store cannot be opened: what there is stays.
    pub(super) fn refuse_changes(&mut self, why: String) {
        self.stored = Stored {
            registered: self.all(),
            answers: self.answers.lasting(),
            unknown: false,
        };
        self.store = Some(Box::new(Unopened::new(why)));
    }

    /// Lets go of addresses whose containers are registered no more. Those that engines keep are theirs to release.
    fn release_leaked(&mut self) {
        let all = self.all();
        let mut leaked = self.pools.holders();
        leaked.retain(|holder| {
            let container = holder.parse().ok();
            container.is_some_and(|name| !all.has_container(&name))
        });
        for holder in leaked {
            for pair in self.pools.release(&holder) {
                info!(
                    "{pair} is released, as container \"{holder}\" that had it is registered no more"
                );
            }
        }
    }

    /// Lets go of the addresses of containers that are registered no more since all was stored.
    fn release_gone(&mut self, all: &Overlay) {
        for name in all.containers_gone_since(&self.stored.registered) {
            self.pools.release(name.as_str());
        }
    }

    /// Everything that is registered, whether it fits or not.
    pub(super) fn all(&self) -> Overlay {
        self.overlay.with(&self.aside.overlay())
    }

    /// Whether what there is outlives the process by itself.
    pub(super) fn is_stored_anywhere(&self) -> bool {
        self.store.is_some()
    }

    /// What another registry can go on with.
    pub(super) fn handed(&self) -> Handed {
        Handed {
            overlay: self.all(),
            pools: self.pools.clone(),
        }
    }

    /// What is registered from now on.
    pub(super) fn set(&mut self, fitted: Fitted) {
        for (one, reason) in fitted.aside.registrations() {
            let known = self.aside.registrations();
            if !known
                .into_iter()
                .any(|(other, why)| (&other, why) == (&one, reason))
            {
                warn!("{one} was registered at run time and is set aside: {reason}");
            }
        }
        Fitted {
            overlay: self.overlay,
            aside: self.aside,
        } = fitted;
    }

    /// Writes what differs from what is stored, and `answered` with it, which is remembered then.
    ///
    /// # Errors
    ///
    /// The store cannot be written. It is tried again, with what there is by then.
    pub(super) fn commit(&mut self, answered: Vec<Answered>) -> Result<(), StoreError> {
        let before = match answered.is_empty() {
            true => None,
            false => Some(self.answers.clone()),
        };
        for one in answered {
            self.answers.remember(one);
        }
        let committed = self.commit_all();
        if committed.is_err() {
            // What was given out is not, and what was let go of is once more when this is tried again.
            let mark = self.pools.stored_mark();
            self.pools.roll_back(mark);
        }
        self.again_at = match &committed {
            Ok(()) => None,
            Err(_) => Some(Instant::now() + AGAIN),
        };
        if let (Err(_), Some(before)) = (&committed, before) {
            self.answers = before;
        }
        committed
    }

    fn commit_all(&mut self) -> Result<(), StoreError> {
        let all = self.all();
        self.release_gone(&all);
        let Some(store) = &mut self.store else {
            self.pools.committed();
            self.stored.registered = all;
            return Ok(());
        };
        let mut of_pools = self.pools.writes();
        if self.stored.unknown {
            let (registered, answers, pools) = read(store.as_mut())?;
            of_pools = self.pools.writes_over(&pools);
            self.stored = Stored {
                registered,
                answers: answers.lasting(),
                unknown: false,
            };
        }
        let records = all.records_since(&self.stored.registered).into_iter();
        let mut writes: Vec<_> = records.map(write).collect();
        writes.extend(self.answers.writes_since(&self.stored.answers));
        writes.extend(of_pools.into_iter().map(write_pool));
        if writes.is_empty() {
            self.pools.committed();
            return Ok(());
        }
        match store.commit(&writes) {
            Ok(_) => {}
            Err(CommitError::NotMade(error)) => return Err(error),
            Err(CommitError::Unknown(error)) => {
                self.stored.unknown = true;
                return Err(error);
            }
        }
        self.pools.committed();
        self.stored.registered = all;
        self.stored.answers = self.answers.lasting();
        Ok(())
    }

    /// Whether the store has what there is, and nothing else, after a commit that failed was taken back
    /// here: it is looked at, and what it has of that commit is taken back there as well.
    pub(super) fn is_stored(&mut self) -> bool {
        self.commit(Vec::new()).is_ok()
    }

    /// Writes what nobody waits for. What cannot be written is tried again.
    pub(super) fn write(&mut self) {
        let was_behind = self.again_at.is_some();
        match self.commit(Vec::new()) {
            Ok(()) if was_behind => info!("the state directory has all that is registered again"),
            Ok(()) => {}
            Err(error) if was_behind => debug!("{error}"),
            Err(error) => warn!("{error}; it is tried again"),
        }
    }

    /// What becomes of what is registered beside another file.
    ///
    /// # Errors
    ///
    /// The file clashes with what is registered.
    pub(super) fn reload(&mut self, file: ConfigFile) -> Result<Config, ConfigErrors> {
        let (overlay, mut notes) = file.adopt(&self.overlay, Orphans::Go);
        file.config(&overlay)?;
        let (aside, more) = file.adopt(&self.aside.overlay(), Orphans::Stay);
        notes.extend(more);
        let fitted = file.fit(&overlay, &aside);
        let config = file.config(&fitted.overlay)?;
        for note in notes {
            info!("registered at run time no more: {note}");
        }
        self.file = file;
        self.set(fitted);
        self.write();
        Ok(config)
    }

    /// Has what was set aside tried again. Returns the configuration if any of it fits now.
    pub(super) fn refit(&mut self) -> Option<Config> {
        if self.aside.is_empty() {
            return None;
        }
        let fitted = self.file.fit(&self.overlay, &self.aside.overlay());
        if fitted.overlay == self.overlay {
            return None;
        }
        let config = self.file.config(&fitted.overlay).ok()?;
        info!("what was set aside fits again");
        self.set(fitted);
        Some(config)
    }
}

/// What a store holds.
fn read(store: &mut dyn Store) -> Result<(Overlay, Answers, Pools), StoreError> {
    let Contents {
        registrations,
        answers,
        pools,
        ..
    } = store.load()?;
    let registered = Overlay::of_records(entries(&registrations));
    let registered = registered.map_err(|bad| store.damaged(&bad.to_string()))?;
    let answers = Answers::of_stored(entries(&answers));
    let answers = answers.map_err(|why| store.damaged(&why))?;
    let pools = Pools::of_stored(entries(&pools));
    let pools = pools.map_err(|bad| store.damaged(&bad.to_string()))?;
    Ok((registered, answers, pools))
}

fn entries(all: &BTreeMap<String, Vec<u8>>) -> impl Iterator<Item = (&str, &[u8])> {
    let entries = all.iter();
    entries.map(|(name, value)| (name.as_str(), value.as_slice()))
}

fn write(Record { name, json }: Record) -> Write {
    Write {
        section: Section::Registrations,
        name,
        value: json,
    }
}

fn write_pool(StoredPool { name, json }: StoredPool) -> Write {
    Write {
        section: Section::Pools,
        name,
        value: json,
    }
}

#[cfg(test)]
mod tests;
