//! Answers that are remembered, so that a request that is sent again is not done again.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::control::api::{Refusal, RefusalCode, Request, Response};
use crate::control::config::{Holder, ProcessIdentity};
use crate::control::store::{Section, Write};

/// Answers that are remembered.
const MAX_ANSWERS: usize = 1024;

/// Octets of answers that are remembered, as they are stored.
const MAX_OCTETS: usize = 4 << 20;

/// What a request was, and who was to hold what it asked for. Two of them are the same only if both
/// are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asking {
    digest: String,
    holder: Option<Holder>,
}

impl Asking {
    pub(super) fn new(request: &Request, holder: Option<Holder>) -> Self {
        // It can always be written.
        let json = serde_json::to_vec(request).unwrap_or_default();
        let digest = Sha256::digest(&json);
        let digest = digest.iter().map(|octet| format!("{octet:02x}"));
        Self {
            digest: digest.collect(),
            holder,
        }
    }
}

/// An answer that is to be remembered by the id of its request.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) id: String,
    pub(super) asking: Asking,
    pub(super) response: Response,
}

/// The last answers to requests that had an id.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    by_id: HashMap<String, Known>,
    /// Ids by the order of their answers.
    order: BTreeMap<u64, String>,
    octets: usize,
}

#[derive(Clone, Debug)]
struct Known {
    order: u64,
    asking: Asking,
    response: Response,
    octets: usize,
}

/// The JSON of an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    order: u64,
    request: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<ProcessIdentity>,
    response: Response,
}

/// The answer to a request that was asked before as `known`. The same id for something else is
/// refused.
pub(super) fn repeated(
    id: &str,
    asking: &Asking,
    (known, response): (&Asking, &Response),
) -> Response {
    if known == asking {
        return response.clone();
    }
    let message = match known.digest == asking.digest {
        true => format!("id: \"{id}\" is of a request for another holder"),
        false => format!("id: \"{id}\" was the id of another request"),
    };
    let refusal = Refusal::new(RefusalCode::IdReused, message).of_field("id");
    Response::Refused(refusal)
}

impl Answers {
    /// What was answered to a request with this id, if one was asked.
    pub(super) fn of(&self, id: &str, asking: &Asking) -> Option<Response> {
        let known = self.by_id.get(id)?;
        Some(repeated(id, asking, (&known.asking, &known.response)))
    }

    /// Remembers an answer, and forgets the oldest ones for it.
    pub(super) fn remember(&mut self, answered: Answered) {
        let order = self.order.last_key_value();
        let order = order.map_or(0, |(last, _)| last + 1);
        let Answered {
            id,
            asking,
            response,
        } = answered;
        let octets = id.len() + stored(order, &asking, &response).len();
        let known = Known {
            order,
            asking,
            response,
            octets,
        };
        self.insert(id, known);
    }

    fn insert(&mut self, id: String, known: Known) {
        self.forget(&id);
        self.octets += known.octets;
        self.order.insert(known.order, id.clone());
        self.by_id.insert(id, known);
        while self.order.len() > MAX_ANSWERS || self.octets > MAX_OCTETS {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.octets -= self.by_id.remove(&oldest).map_or(0, |known| known.octets);
        }
    }

    fn forget(&mut self, id: &str) {
        if let Some(known) = self.by_id.remove(id) {
            self.order.remove(&known.order);
            self.octets -= known.octets;
        }
    }

    /// Who holds what was asked for.
    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> {
        let known = self.by_id.values();
        known.filter_map(|known| known.asking.holder)
    }

    /// Forgets answers to requests whose holders have ended: what they said is so no more.
    pub(super) fn forget_held(&mut self, ended: impl Fn(Holder) -> bool) {
        let held = self
            .by_id
            .iter()
            .filter(|(_, known)| known.asking.holder.is_some_and(&ended));
        let held: Vec<_> = held.map(|(id, _)| id.clone()).collect();
        for id in held {
            self.forget(&id);
        }
    }

    /// What has to be written where the answers `stored` are, by their ids and orders, so that these
    /// are there.
    pub(super) fn writes_since(&self, stored: &HashMap<String, u64>) -> Vec<Write> {
        let lasting = self.lasting();
        let write = |id: &str, value| Write {
            section: Section::Answers,
            name: id.to_owned(),
            value,
        };
        let gone = stored.keys().filter(|id| !lasting.contains_key(*id));
        let gone = gone.map(|id| write(id, None));
        let changed = lasting
            .iter()
            .filter(|(id, order)| stored.get(*id) != Some(*order));
        let changed = changed.filter_map(|(id, &order)| {
            let known = self.by_id.get(id)?;
            let json = self::stored(order, &known.asking, &known.response);
            Some(write(id, Some(json)))
        });
        gone.chain(changed).collect()
    }

    /// The answers that are stored: those whose holder may outlive the process.
    pub(super) fn lasting(&self) -> HashMap<String, u64> {
        let lasts = |known: &Known| !matches!(known.asking.holder, Some(Holder::Connection(_)));
        let lasting = self.by_id.iter().filter(|(_, known)| lasts(known));
        lasting
            .map(|(id, known)| (id.clone(), known.order))
            .collect()
    }

    /// Answers as they were stored, each with its id.
    ///
    /// # Errors
    ///
    /// The first that makes no sense.
    pub(super) fn of_stored<'a>(
        stored: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, String> {
        let mut answers = Self::default();
        let mut read = Vec::new();
        for (id, json) in stored {
            let stored: Stored = serde_json::from_slice(json)
                .map_err(|error| format!("the answer {id:?} makes no sense: {error}"))?;
            read.push((id.to_owned(), stored, id.len() + json.len()));
        }
        read.sort_by_key(|(_, stored, _)| stored.order);
        for (id, stored, octets) in read {
            let known = Known {
                order: stored.order,
                asking: Asking {
                    digest: stored.request,
                    holder: stored.holder.map(Holder::Process),
                },
                response: stored.response,
                octets,
            };
            answers.insert(id, known);
        }
        Ok(answers)
    }
}

/// Empty if it cannot be written, which it always can.
fn stored(order: u64, asking: &Asking, response: &Response) -> Vec<u8> {
    let holder = match asking.holder {
        Some(Holder::Process(process)) => Some(process),
        Some(Holder::Connection(_)) | None => None,
    };
    let stored = Stored {
        order,
        request: asking.digest.clone(),
        holder,
        response: response.clone(),
    };
    serde_json::to_vec(&stored).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Applied;
    use crate::control::config::{BootId, Keys};

    fn request(name: &str) -> Request {
        Request::Detach(Keys::default().with("name", name))
    }

    fn asking(name: &str) -> Asking {
        Asking::new(&request(name), None)
    }

    fn done() -> Response {
        Response::Changed(Applied::default())
    }

    fn answered(id: &str, asking: Asking) -> Answered {
        Answered {
            id: id.to_owned(),
            asking,
            response: done(),
        }
    }

    fn process(pid: u32) -> Holder {
        Holder::Process(ProcessIdentity {
            pid,
            started: 7,
            boot: BootId(1),
        })
    }

    #[test]
    fn the_same_id_has_the_same_answer_and_is_nothing_elses() {
        let mut answers = Answers::default();
        assert_eq!(answers.of("a", &asking("web")), None);
        answers.remember(answered("a", asking("web")));
        assert_eq!(answers.of("a", &asking("web")), Some(done()));
        for other in [
            asking("db"),
            Asking::new(&request("web"), Some(Holder::Connection(1))),
        ] {
            let Some(Response::Refused(refusal)) = answers.of("a", &other) else {
                panic!("another request has the answer of the first");
            };
            assert_eq!(refusal.code, RefusalCode::IdReused);
            assert_eq!(refusal.field.as_deref(), Some("id"));
        }
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let mut answers = Answers::default();
        for number in 0..=MAX_ANSWERS {
            answers.remember(answered(&number.to_string(), asking("web")));
        }
        assert_eq!(answers.of("0", &asking("web")), None);
        assert_eq!(answers.of("1", &asking("web")), Some(done()));
        for number in 0..100 {
            let refusal = Refusal::new(RefusalCode::Refused, "x".repeat(60_000));
            answers.remember(Answered {
                response: Response::Refused(refusal),
                ..answered(&format!("long {number}"), asking("web"))
            });
        }
        assert!(answers.octets <= MAX_OCTETS, "{}", answers.octets);
        assert_eq!(answers.of("1", &asking("web")), None);
        assert!(answers.of("long 99", &asking("web")).is_some());
        assert_eq!(answers.by_id.len(), answers.order.len());
    }

    #[test]
    fn what_is_stored_says_the_same_and_nothing_of_connections() {
        let mut answers = Answers::default();
        let held = Asking::new(&request("web"), Some(process(5)));
        let connection = Asking::new(&request("web"), Some(Holder::Connection(5)));
        answers.remember(answered("b", asking("web")));
        answers.remember(answered("a", held.clone()));
        answers.remember(answered("c", connection.clone()));
        let writes = answers.writes_since(&HashMap::new());
        let stored: Vec<_> = writes
            .iter()
            .map(|write| (write.name.as_str(), write.value.as_deref().unwrap()))
            .collect();
        assert_eq!(stored.len(), 2);
        let mut read = Answers::of_stored(stored).unwrap();
        assert_eq!(read.of("a", &held), Some(done()));
        assert_eq!(read.of("b", &asking("web")), Some(done()));
        assert_eq!(read.of("c", &connection), None);
        assert_eq!(read.writes_since(&answers.lasting()), []);
        // Those of a holder go with it.
        let before = read.lasting();
        read.forget_held(|holder| holder == process(5));
        assert_eq!(read.of("a", &held), None);
        let gone: Vec<_> = read.writes_since(&before);
        assert_eq!(
            (gone.len(), gone[0].name.as_str(), &gone[0].value),
            (1, "a", &None)
        );
        assert!(
            Answers::of_stored([("a", &b"{}"[..])])
                .unwrap_err()
                .contains("\"a\"")
        );
    }
}
