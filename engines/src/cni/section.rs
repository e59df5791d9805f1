//! Reading an object of the configuration: every error names the key by its path.

use core::fmt::Display;

use serde_json::{Map, Value};

use super::error::CniError;

/// Elements of the longest list that is read.
const MAX_ELEMENTS: usize = 65_536;

/// An object of the configuration, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    keys: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Section<'a> {
    pub(super) fn new(value: &'a Value, path: &'a str) -> Result<Self, CniError> {
        match value {
            Value::Object(keys) => Ok(Self { keys, path }),
            other => Err(mistyped(path, "an object", other)),
        }
    }

    /// The value of a key; null is as good as none.
    pub(super) fn value(self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, CniError> {
        self.value(key)
            .map(|value| text(value, &self.at(key)))
            .transpose()
    }

    /// The key as it stands here, whatever its case is: engines in Go take and write any.
    pub(super) fn folded<'k>(self, key: &'k str) -> &'k str
    where
        'a: 'k,
    {
        let mut keys = self.keys.keys().map(String::as_str);
        match self.keys.contains_key(key) {
            true => key,
            false => keys.find(|it| it.eq_ignore_ascii_case(key)).unwrap_or(key),
        }
    }

    /// The elements of a list; none where there is no list.
    pub(super) fn list(self, key: &str) -> Result<&'a [Value], CniError> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) if list.len() <= MAX_ELEMENTS => Ok(list),
            Some(Value::Array(_)) => Err(self.wrong(key, "has too many elements")),
            Some(other) => Err(mistyped(&self.at(key), "a list", other)),
        }
    }

    /// A list of texts, or one text alone.
    pub(super) fn texts(self, key: &str) -> Result<Option<Vec<&'a str>>, CniError> {
        let at = self.at(key);
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(one)) => Ok(Some(vec![one])),
            Some(_) => {
                let list = self.list(key)?.iter().map(|value| text(value, &at));
                list.collect::<Result<_, _>>().map(Some)
            }
        }
    }

    /// Refuses keys that are not among `known`.
    pub(super) fn only(self, known: &[&str]) -> Result<(), CniError> {
        let unknown = self.keys.keys().find(|key| !known.contains(&key.as_str()));
        match unknown {
            None => Ok(()),
            Some(key) => {
                let shown: String = key.chars().take(80).collect();
                let why = format!("is not known; there are {}", known.join(", "));
                Err(self.wrong(&shown, why))
            }
        }
    }

    pub(super) fn wrong(self, key: &str, why: impl Display) -> CniError {
        CniError::configuration(format!("{}: {why}", self.at(key)))
    }

    pub(super) fn at(self, key: &str) -> String {
        match self.path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    pub(super) fn keys(self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.keys.iter().map(|(key, value)| (key.as_str(), value))
    }
}

pub(super) fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, CniError> {
    value
        .as_str()
        .ok_or_else(|| mistyped(path, "a text", value))
}

/// A value of another type than it has to be.
pub(super) fn mistyped(path: &str, wanted: &str, value: &Value) -> CniError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let path = if path.is_empty() {
        "the configuration"
    } else {
        path
    };
    CniError::configuration(format!("{path}: is {found}, and has to be {wanted}"))
}
