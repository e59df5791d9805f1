//! Requests that change something, and their answers.
//!
//! A request becomes another overlay beside the configuration file, checked whole
//! ([`ConfigFile::change`]), and is carried out as a reload is. What the kernel or the NOS refuses of
//! it is taken back: all is as it was then, and nobody else has noticed.

use std::collections::{HashMap, VecDeque};

use tracing::{info, warn};

use crate::control::api::{Applied, Asked, Clash, Refusal, RefusalCode, Request, Response};
use crate::control::config::{
    Change, Changed, ConfigError, ConfigErrors, ConfigFile, Keys, Overlay, Touched,
};
use crate::control::plan::Entity;

use super::Daemon;
use super::standing::Condition;

/// Answers that are remembered.
const MAX_ANSWERS: usize = 1024;

/// Octets of requests and answers that are remembered.
const MAX_OCTETS: usize = 4 << 20;

/// The configuration file and what was registered besides.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) file: ConfigFile,
    pub(super) overlay: Overlay,
    pub(super) answers: Answers,
    /// Something is other than the service manager was told.
    pub(super) changed: bool,
}

impl Registry {
    pub(super) fn with(file: ConfigFile, overlay: Overlay) -> Self {
        Self {
            file,
            overlay,
            answers: Answers::default(),
            changed: true,
        }
    }
}

/// The last answers to requests that had an id.
#[derive(Debug, Default)]
pub(super) struct Answers {
    by_id: HashMap<String, Answer>,
    /// The oldest first.
    order: VecDeque<String>,
    octets: usize,
}

#[derive(Debug)]
struct Answer {
    request: Request,
    response: Response,
    octets: usize,
}

impl Answers {
    /// What was answered to the request, if it was asked before. The same id for something else is
    /// refused.
    fn of(&self, id: &str, request: &Request) -> Option<Response> {
        let known = self.by_id.get(id)?;
        if known.request == *request {
            return Some(known.response.clone());
        }
        let message = format!("id: \"{id}\" was the id of another request");
        let refusal = Refusal::new(RefusalCode::IdReused, message).of_field("id");
        Some(Response::Refused(refusal))
    }

    fn remember(&mut self, id: &str, request: &Request, response: &Response) {
        let length = |json: Result<Vec<u8>, _>| json.map_or(0, |json: Vec<u8>| json.len());
        let octets =
            id.len() + length(serde_json::to_vec(request)) + length(serde_json::to_vec(response));
        let answer = Answer {
            request: request.clone(),
            response: response.clone(),
            octets,
        };
        self.octets += octets;
        self.order.push_back(id.to_owned());
        self.by_id.insert(id.to_owned(), answer);
        while self.order.len() > MAX_ANSWERS || self.octets > MAX_OCTETS {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.octets -= self.by_id.remove(&oldest).map_or(0, |answer| answer.octets);
        }
    }
}

impl Daemon {
    /// Answers a request, or `None` if it is to watch.
    pub(super) fn answer(&mut self, asked: &Asked) -> Option<Response> {
        let (change, keys) = match &asked.request {
            Request::Show { table } => return Some(self.show(*table)),
            Request::Watch {} | Request::TakeOver { .. } => return None,
            request => request.change()?,
        };
        let id = asked.id.as_deref();
        let known = id.and_then(|id| self.registry.answers.of(id, &asked.request));
        if let Some(known) = known {
            return Some(known);
        }
        if self.giving.is_some() {
            let why = "another process is taking over; ask it in a moment";
            return Some(Response::Refused(Refusal::new(
                RefusalCode::Unavailable,
                why,
            )));
        }
        let response = self.change(change, keys).unwrap_or_else(Response::Refused);
        log(asked, &response);
        if let Some(id) = id {
            self.registry
                .answers
                .remember(id, &asked.request, &response);
        }
        Some(response)
    }

    fn change(&mut self, change: Change, keys: &Keys) -> Result<Response, Refusal> {
        let Registry { file, overlay, .. } = &self.registry;
        let changed = file
            .change(overlay, change, keys)
            .map_err(|errors| refusal(&errors))?;
        let Changed {
            overlay,
            config,
            touched,
            range,
        } = changed;
        let changed = config.is_some();
        if let Some(config) = config {
            let before = self.reconciler.standing.clone();
            let old = self.reconciler.wanted().cloned();
            self.reconciler
                .want_change(config, &touched, &mut self.watch);
            self.reconcile();
            if let Some(reason) = self.refused(&touched) {
                if let Some(old) = old {
                    self.reconciler.withdraw(old, before, &mut self.watch);
                    self.reconcile();
                }
                return Err(Refusal::new(RefusalCode::Refused, reason));
            }
            self.registry.overlay = overlay;
            self.registry.changed = true;
        }
        Ok(Response::Changed(Applied {
            changed,
            waiting: self.waits_for(&touched),
            range: range.map(|range| range.to_string()),
        }))
    }

    /// Why what was asked for cannot be, if so.
    fn refused(&self, touched: &Touched) -> Option<String> {
        let entry = self.reconciler.standing.of(&entity(touched))?;
        match &entry.condition {
            Condition::Waiting(_) => None,
            Condition::Unfit(reason) | Condition::Refused(reason) => Some(reason.clone()),
        }
    }

    fn waits_for(&self, touched: &Touched) -> Option<String> {
        let entry = self.reconciler.standing.of(&entity(touched))?;
        match &entry.condition {
            Condition::Waiting(reason) => Some(reason.clone()),
            Condition::Unfit(_) | Condition::Refused(_) => None,
        }
    }
}

fn entity(touched: &Touched) -> Entity {
    match touched {
        Touched::Container(name) => Entity::Container(name.clone()),
        Touched::Uplink(name) => Entity::Uplink(name.clone()),
        Touched::Routes => Entity::Routes,
    }
}

/// Says all that is wrong, and of the first thing where.
fn refusal(errors: &ConfigErrors) -> Refusal {
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

/// Each request for a change is logged with who asked.
fn log(asked: &Asked, response: &Response) {
    let (pid, uid) = (asked.peer.pid, asked.peer.uid);
    let request = serde_json::to_string(&asked.request).unwrap_or_default();
    let request = shortened(&request);
    match response {
        Response::Refused(refusal) => {
            warn!(pid, uid, request, "refused: {refusal}");
        }
        Response::Changed(Applied { changed: true, .. }) => info!(pid, uid, request, "changed"),
        _ => info!(pid, uid, request, "changes nothing"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> Request {
        Request::Detach(Keys::default().with("name", name))
    }

    fn done() -> Response {
        Response::Changed(Applied::default())
    }

    #[test]
    fn the_same_id_has_the_same_answer_and_is_nothing_elses() {
        let mut answers = Answers::default();
        assert_eq!(answers.of("a", &request("web")), None);
        answers.remember("a", &request("web"), &done());
        assert_eq!(answers.of("a", &request("web")), Some(done()));
        let Some(Response::Refused(refusal)) = answers.of("a", &request("db")) else {
            panic!("another request has the answer of the first");
        };
        assert_eq!(refusal.code, RefusalCode::IdReused);
        assert_eq!(refusal.field.as_deref(), Some("id"));
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let mut answers = Answers::default();
        for number in 0..=MAX_ANSWERS {
            answers.remember(&number.to_string(), &request("web"), &done());
        }
        assert_eq!(answers.of("0", &request("web")), None);
        assert_eq!(answers.of("1", &request("web")), Some(done()));
        let long = request(&"x".repeat(60_000));
        for number in 0..100 {
            answers.remember(&format!("long {number}"), &long, &done());
        }
        assert!(answers.octets <= MAX_OCTETS, "{}", answers.octets);
        assert_eq!(answers.of("1", &request("web")), None);
        assert_eq!(answers.of("long 99", &long), Some(done()));
        assert_eq!(answers.by_id.len(), answers.order.len());
    }
}
