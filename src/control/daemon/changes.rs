//! Requests that change something, and their answers.
//!
//! # Theory of operation
//!
//! A request becomes another overlay beside the configuration file, checked whole
//! ([`crate::control::config::ConfigFile::change`]), and is carried out as a reload is. What the
//! kernel or the NOS refuses of it is taken back: all is as it was then, and nobody else has noticed.
//!
//! What was done is stored before it is answered:
//!
//! | | first | then | killed in between |
//! |---|---|---|---|
//! | what gives something | the kernel and the NOS | the store | it is not there, and was not answered |
//! | what may take away | the store | the kernel and the NOS | it is done at the next start |
//!
//! So what the store cannot take is refused, and taken back, without anybody's packets being
//! interrupted. Requests that give something and wait together are a [`Batch`]: one commit stores all
//! of them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::control::api::{
    Applied, Asked, Changing, Clash, ConnectionId, Peer, Refusal, RefusalCode, Request, Response,
    Server,
};
use crate::control::config::{
    Aside, Change, Changed, Config, ConfigError, ConfigErrors, Fitted, Holder, Holders, Keys,
    NetnsRef, Overlay, ProcessIdentity, Touched,
};
use crate::control::plan::Entity;
use crate::control::store::StoreError;

use super::Daemon;
use super::answers::{Answered, Asking, repeated};
use super::containers::open;
use super::standing::{Condition, Standing};
use super::watching::unix_ms;

/// Requests that one commit stores.
const MAX_BATCH: usize = 32;

/// How long requests are taken before the daemon looks at what else has happened.
const TURN: Duration = Duration::from_millis(20);

/// Requests whose answers wait for the store.
#[derive(Default)]
struct Batch {
    answers: Vec<Pending>,
    /// What there was before the first of them that changed anything.
    before: Option<Before>,
}

/// An answer that waits.
struct Pending {
    connection: ConnectionId,
    peer: Peer,
    request: Request,
    holder: Option<Holder>,
    /// By what it is remembered, if it is to be.
    id: Option<(String, Asking)>,
    response: Response,
    /// It does not depend on what is still to be stored.
    settled: bool,
}

/// What is gone back to.
struct Before {
    overlay: Overlay,
    aside: Aside,
    config: Option<Config>,
    standing: Standing,
}

/// The id of a request, and by what it is known again.
type AskedAs = (String, Asking);

/// A response, and whether it depends on what is still to be stored.
enum Answer {
    /// It is to be stored and remembered.
    New(Response),
    /// It is that of a request which is to be stored.
    Same(Response),
    /// It is stored, or is not to be.
    Settled(Response),
}

/// Why `"pidfd"` has nobody to mean.
const NO_PIDFD: &str = "no pidfd came along, and the kernel gives none of who asks";

impl Daemon {
    /// Answers requests, for a while. Returns whether there are more.
    pub(super) fn take_requests(&mut self, server: &mut Server) -> bool {
        let begun = Instant::now();
        let mut batch = Batch::default();
        let mut taken = 0;
        while taken < MAX_BATCH && begun.elapsed() < TURN {
            let Some(asked) = server.poll_request() else {
                break;
            };
            taken += 1;
            self.take(asked, &mut batch, server);
        }
        self.settle(&mut batch, server);
        server.waiting_requests() > 0
    }

    fn take(&mut self, asked: Asked, batch: &mut Batch, server: &mut Server) {
        let connection = asked.connection;
        match &asked.request {
            // What is shown is stored.
            Request::Show { table } => {
                self.settle(batch, server);
                let response = self.show(*table);
                server.respond(connection, &response, self.live.plane.now());
            }
            Request::Watch { registrations } => {
                self.settle(batch, server);
                // What happened before is not told.
                self.publish(server);
                let now = self.live.plane.now();
                if *registrations {
                    let registered = self.reconciler.registered();
                    server.watch_registrations(connection, unix_ms(), &registered, now);
                } else {
                    server.watch(connection, now);
                }
            }
            Request::TakeOver { format } => {
                self.settle(batch, server);
                self.offer(&asked, *format, server);
            }
            _ => self.take_change(asked, batch, server),
        }
    }

    fn take_change(&mut self, asked: Asked, batch: &mut Batch, server: &mut Server) {
        let Asked {
            connection,
            request,
            id,
            peer,
            descriptor,
        } = asked;
        let Some((change, keys)) = request.change() else {
            return;
        };
        if self.giving.is_some() {
            let why = "another process is taking over; ask it in a moment";
            let refusal = Refusal::new(RefusalCode::Unavailable, why);
            let now = self.live.plane.now();
            return server.respond(connection, &Response::Refused(refusal), now);
        }
        let holders = Holders {
            connection: Some(connection.number()),
            process: match &descriptor {
                Some(pidfd) => self.processes.identify(pidfd.as_fd()),
                None => Err(NO_PIDFD.to_owned()),
            },
        };
        let holder = match keys.value("lease") {
            Some("connection") => holders.connection.map(Holder::Connection),
            Some("pidfd") => holders.process.clone().ok().map(Holder::Process),
            _ => None,
        };
        let id = id.map(|id| (id, Asking::new(&request, holder)));
        let answer = if let Some(known) = self.known(id.as_ref(), batch) {
            known
        } else if let Err(refusal) = may_hold(holder, connection, server) {
            Answer::Settled(Response::Refused(refusal))
        } else {
            match change {
                Changing::Pools(action) => {
                    let given = self.give_pool(action, keys);
                    Answer::New(given.unwrap_or_else(Response::Refused))
                }
                Changing::Registered(change) if change.takes_away() => {
                    self.settle(batch, server);
                    Answer::Settled(self.take_away(id.as_ref(), change, keys, &holders))
                }
                Changing::Registered(change) => {
                    let watched = self.watch_holder(holder, descriptor);
                    let given =
                        watched.and_then(|()| self.give_pooled(change, keys, &holders, batch));
                    Answer::New(given.unwrap_or_else(Response::Refused))
                }
            }
        };
        let (response, id, settled) = match answer {
            Answer::New(response) => (response, id, false),
            Answer::Same(response) => (response, None, false),
            Answer::Settled(response) => (response, None, true),
        };
        batch.answers.push(Pending {
            connection,
            peer,
            request,
            holder,
            id,
            response,
            settled,
        });
    }

    /// What was answered before to the same request.
    fn known(&self, id: Option<&AskedAs>, batch: &Batch) -> Option<Answer> {
        let (id, asking) = id?;
        if let Some(known) = self.registry.answers.of(id, asking) {
            return Some(Answer::Settled(known));
        }
        let mut pending = batch.answers.iter();
        let same = pending.find_map(|pending| {
            let (known, earlier) = pending.id.as_ref()?;
            (known == id).then(|| repeated(id, asking, (earlier, &pending.response)))
        });
        same.map(Answer::Same)
    }

    /// As [`Self::give`], with an address out of a pool where a container is to have one.
    fn give_pooled(
        &mut self,
        change: Change,
        keys: &Keys,
        holders: &Holders,
        batch: &mut Batch,
    ) -> Result<Response, Refusal> {
        let mark = self.registry.pools.mark();
        let given = self.with_addresses(change, keys).and_then(|(keys, given)| {
            let response = self.give(change, &keys, holders, batch)?;
            Ok(match response {
                Response::Changed(applied) => Response::Changed(Applied {
                    addresses: given,
                    ..applied
                }),
                other => other,
            })
        });
        if given.is_err() {
            self.registry.pools.roll_back(mark);
        }
        given
    }

    /// Carries out a request that takes nothing away. It is answered when it is stored.
    fn give(
        &mut self,
        change: Change,
        keys: &Keys,
        holders: &Holders,
        batch: &mut Batch,
    ) -> Result<Response, Refusal> {
        let changed = self.checked(change, keys, holders)?;
        let Changed {
            overlay,
            config,
            touched,
            range,
            ..
        } = changed;
        let is_new = config.is_some();
        if let Some(config) = config {
            refuse_dead(&config, &touched)?;
            let before = self.present();
            self.apply(&config, std::slice::from_ref(&touched));
            if let Some(reason) = self.refused(&touched) {
                self.go_back(before);
                return Err(Refusal::new(RefusalCode::Refused, reason));
            }
            batch.before.get_or_insert(before);
            self.registry.overlay = overlay;
        }
        Ok(Response::Changed(Applied {
            changed: is_new,
            waiting: self.waits_for(&touched),
            range: range.map(|range| range.to_string()),
            addresses: Vec::new(),
        }))
    }

    /// Stores a request that may take something away, and carries it out.
    fn take_away(
        &mut self,
        id: Option<&AskedAs>,
        change: Change,
        keys: &Keys,
        holders: &Holders,
    ) -> Response {
        let changed = match self.checked(change, keys, holders) {
            Ok(changed) => changed,
            Err(refusal) => return self.answer_stored(id, Response::Refused(refusal)),
        };
        let aside = changed.aside(&self.registry.aside);
        let is_new = changed.config.is_some() || aside != self.registry.aside;
        let stays = match (&changed.touched, &changed.config) {
            (Touched::Container(name), Some(config)) => config.container(name).is_some(),
            _ => true,
        };
        let waiting = self.waits_for(&changed.touched).filter(|_| stays);
        let response = Response::Changed(Applied {
            changed: is_new,
            waiting,
            range: None,
            addresses: Vec::new(),
        });
        let before = self.present();
        self.registry.set(Fitted {
            overlay: changed.overlay,
            aside,
        });
        if let Err(error) = self.store_answer(id, &response) {
            // Nothing has happened yet.
            (self.registry.overlay, self.registry.aside) = (before.overlay, before.aside);
            return Response::Refused(self.not_stored(&error));
        }
        if let Some(config) = changed.config {
            self.apply(&config, std::slice::from_ref(&changed.touched));
            if let Some(reason) = self.refused(&changed.touched) {
                self.go_back(before);
                let refusal = Refusal::new(RefusalCode::Refused, reason);
                return self.answer_stored(id, Response::Refused(refusal));
            }
        }
        if is_new {
            self.refit();
        }
        response
    }

    /// The answer once it is stored with what is registered: itself, or that it could not be.
    fn answer_stored(&mut self, id: Option<&AskedAs>, response: Response) -> Response {
        match self.store_answer(id, &response) {
            Ok(()) => response,
            Err(error) => Response::Refused(self.not_stored(&error)),
        }
    }

    /// Stores what is registered, and an answer that is remembered.
    fn store_answer(
        &mut self,
        id: Option<&AskedAs>,
        response: &Response,
    ) -> Result<(), StoreError> {
        let answered = id.cloned().map(|(id, asking)| Answered {
            id,
            asking,
            response: response.clone(),
        });
        self.registry.commit(answered.into_iter().collect())
    }

    /// That the store could not take what was asked for, which is not done here any more. A disk that
    /// fails may have taken it all the same: it is asked, and if it does not tell, this is said.
    fn not_stored(&mut self, error: &StoreError) -> Refusal {
        match self.registry.is_stored() {
            true => Refusal::new(
                RefusalCode::Storage,
                format!("{error}; nothing was changed"),
            ),
            false => Refusal::new(
                RefusalCode::Uncertain,
                format!(
                    "{error}; nothing is changed now, but what was asked for may be there after a \
                     restart: look then, or ask again"
                ),
            ),
        }
    }

    /// Stores what was done, and answers.
    fn settle(&mut self, batch: &mut Batch, server: &mut Server) {
        let Batch { answers, before } = std::mem::take(batch);
        if answers.is_empty() {
            return;
        }
        let remembered = answers.iter().filter_map(|pending| {
            let (id, asking) = pending.id.clone()?;
            Some(Answered {
                id,
                asking,
                response: pending.response.clone(),
            })
        });
        let refusal = match (self.registry.commit(remembered.collect()), before) {
            (Ok(()), _) => None,
            (Err(error), before) => {
                if let Some(before) = before {
                    self.go_back(before);
                }
                Some(self.not_stored(&error))
            }
        };
        for mut pending in answers {
            if let (Some(refusal), false) = (&refusal, pending.settled) {
                pending.response = Response::Refused(refusal.clone());
            }
            self.respond(&pending, server);
        }
        self.forget_processes();
    }

    /// Watches none but the processes that hold something.
    fn forget_processes(&mut self) {
        let registry = &self.registry;
        let aside = registry.aside.overlay();
        let holders: BTreeSet<_> = registry.overlay.holders().chain(aside.holders()).collect();
        self.processes
            .retain(|process| holders.contains(&Holder::Process(process)));
    }

    fn respond(&mut self, pending: &Pending, server: &mut Server) {
        log(pending);
        let now = self.live.plane.now();
        let granted = matches!(pending.response, Response::Changed(_));
        match pending.holder {
            Some(Holder::Connection(number)) if granted => {
                self.connections.insert(number, pending.peer);
                server.hold(pending.connection, &pending.response, now);
            }
            _ => server.respond(pending.connection, &pending.response, now),
        }
    }

    fn checked(&self, change: Change, keys: &Keys, holders: &Holders) -> Result<Changed, Refusal> {
        let registry = &self.registry;
        let changed = registry
            .file
            .change(&registry.overlay, change, keys, holders);
        changed.map_err(|errors| refusal(&errors))
    }

    /// Watches the process that is to hold what is asked for, before it does.
    fn watch_holder(
        &mut self,
        holder: Option<Holder>,
        pidfd: Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        let (Some(Holder::Process(process)), Some(pidfd)) = (holder, pidfd) else {
            return Ok(());
        };
        let watched = self.processes.watch(process, pidfd);
        watched.map_err(|reason| {
            let refusal = Refusal::new(RefusalCode::Busy, format!("lease: {reason}"));
            refusal.of_field("lease")
        })
    }

    fn present(&self) -> Before {
        Before {
            overlay: self.registry.overlay.clone(),
            aside: self.registry.aside.clone(),
            config: self.reconciler.wanted().cloned(),
            standing: self.reconciler.standing.clone(),
        }
    }

    /// Wants what was wanted before, and carries that out.
    fn go_back(&mut self, before: Before) {
        let Before {
            overlay,
            aside,
            config,
            standing,
        } = before;
        (self.registry.overlay, self.registry.aside) = (overlay, aside);
        if let Some(config) = config {
            self.reconciler.withdraw(config, standing, &mut self.watch);
            self.reconcile();
        }
    }

    /// Wants `config` from now on, which differs in what is touched alone.
    fn apply(&mut self, config: &Config, touched: &[Touched]) {
        for one in touched {
            self.reconciler
                .want_change(config.clone(), one, &mut self.watch);
        }
        self.reconcile();
    }

    /// Looks whether what was set aside fits by now.
    fn refit(&mut self) {
        let before = self.registry.overlay.clone();
        if let Some(config) = self.registry.refit() {
            let touched = self.registry.overlay.touched_since(&before);
            self.apply(&config, &touched);
            self.registry.write();
        }
    }

    /// What was held by connections and processes that have ended is registered no more.
    pub(super) fn end_leases(&mut self, server: &mut Server) {
        let connections = std::iter::from_fn(|| server.poll_ended()).map(Holder::Connection);
        let mut ended: Vec<_> = connections.collect();
        let processes = self.processes.take_ended().into_iter();
        ended.extend(processes.map(Holder::Process));
        if ended.is_empty() {
            return;
        }
        let registry = &mut self.registry;
        let has_ended = |holder: Holder| ended.contains(&holder);
        registry.answers.forget_held(has_ended);
        let left = registry.overlay.without_holders(has_ended);
        let aside = registry.aside.without_holders(has_ended);
        let before = registry.overlay.clone();
        // Something else may have needed what went, such as a container its address.
        let fitted = match registry.file.config(&left) {
            Ok(_) => Fitted {
                overlay: left,
                aside,
            },
            Err(_) => registry
                .file
                .fit(&Overlay::default(), &left.with(&aside.overlay())),
        };
        registry.set(fitted);
        for holder in &ended {
            log_end(*holder);
            if let Holder::Connection(number) = holder {
                self.connections.remove(number);
            }
        }
        let touched = registry.overlay.touched_since(&before);
        let config = registry.file.config(&registry.overlay);
        if let (false, Ok(config)) = (touched.is_empty(), config) {
            self.apply(&config, &touched);
        }
        self.refit();
        self.registry.write();
    }

    /// Why what was asked for cannot be, if so.
    fn refused(&self, touched: &Touched) -> Option<String> {
        let entry = self.reconciler.standing.of(&entity(touched)?)?;
        match &entry.condition {
            Condition::Waiting(_) => None,
            Condition::Unfit(reason) | Condition::Refused(reason) => Some(reason.clone()),
        }
    }

    fn waits_for(&self, touched: &Touched) -> Option<String> {
        let entry = self.reconciler.standing.of(&entity(touched)?)?;
        match &entry.condition {
            Condition::Waiting(reason) => Some(reason.clone()),
            Condition::Unfit(_) | Condition::Refused(_) => None,
        }
    }
}

/// Who can be refused what was asked for; nobody, where it is about a network alone.
fn entity(touched: &Touched) -> Option<Entity> {
    match touched {
        Touched::Network(_) => None,
        Touched::Container(name) => Some(Entity::Container(name.clone())),
        Touched::Uplink(name) => Some(Entity::Uplink(name.clone())),
        Touched::Routes => Some(Entity::Routes),
    }
}

/// Says all that is wrong, and of the first thing where.
pub(super) fn refusal(errors: &ConfigErrors) -> Refusal {
    let said = |error: &ConfigError| match &error.key {
        Some(key) => format!("{key}: {}", error.reason),
        None => error.reason.clone(),
    };
    let mut lines: Vec<_> = errors.errors().iter().map(said).collect();
    if errors.omitted() > 0 {
        lines.push(format!("and {} more", errors.omitted()));
    }
    let all = errors.errors();
    let clash = all.iter().find_map(|error| error.clash.as_ref());
    let code = match clash {
        Some(_) => RefusalCode::Conflict,
        None => RefusalCode::BadRequest,
    };
    Refusal {
        field: all.first().and_then(|error| error.key.clone()),
        clash: clash.map(|clash| Box::new(Clash::from(clash))),
        ..Refusal::new(code, lines.join("\n"))
    }
}

/// Whether a connection can hold what it asks for.
fn may_hold(
    holder: Option<Holder>,
    connection: ConnectionId,
    server: &Server,
) -> Result<(), Refusal> {
    match holder {
        Some(Holder::Connection(_)) if !server.may_hold(connection) => {
            let message = "too many connections hold something; try again later";
            Err(Refusal::new(RefusalCode::Busy, message).of_field("lease"))
        }
        _ => Ok(()),
    }
}

/// Each request for a change is logged with who asked.
fn log(pending: &Pending) {
    let Peer { pid, uid } = pending.peer;
    let request = serde_json::to_string(&pending.request).unwrap_or_default();
    let request = shortened(&request);
    match &pending.response {
        Response::Refused(refusal) => {
            warn!(pid, uid, request, "refused: {refusal}");
        }
        Response::Changed(Applied { changed: true, .. }) => info!(pid, uid, request, "changed"),
        _ => info!(pid, uid, request, "changes nothing"),
    }
}

fn log_end(holder: Holder) {
    match holder {
        Holder::Connection(_) => info!("what a connection held goes with it"),
        Holder::Process(ProcessIdentity { pid, .. }) => {
            info!(pid, "what a process held goes with it");
        }
    }
}

/// The start of a text that may be as long as a request.
fn shortened(text: &str) -> &str {
    const LENGTH: usize = 500;
    let end = text
        .char_indices()
        .nth(LENGTH)
        .map_or(text.len(), |(end, _)| end);
    &text[..end]
}

/// A process that has ended does not come back: what another one is by its number must not be attached in its
/// place. A namespace that is named by a path may come.
fn refuse_dead(config: &Config, touched: &Touched) -> Result<(), Refusal> {
    let Touched::Container(name) = touched else {
        return Ok(());
    };
    let netns = config.container(name).map(|container| &container.netns);
    let Some(netns @ NetnsRef::Pid(_)) = netns else {
        return Ok(());
    };
    match open(netns) {
        Ok(_) => Ok(()),
        Err(error) => Err(Refusal::new(RefusalCode::Refused, error.to_string()).of_field("pid")),
    }
}
