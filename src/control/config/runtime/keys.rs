//! Keys and values of a request, as they stand in it.

use core::fmt;
use core::net::IpAddr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use toml::{Table, Value};

use super::super::NetnsRef;

/// Keys and values, as in a table of the configuration. They are not checked: reading them says what
/// is wrong with which key, as of the file. No key stands twice, and nothing is null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys(Table);

impl Keys {
    /// The same with `value` for `key`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// The same with `value` for `key`, unless something stands for it.
    #[must_use]
    pub(super) fn or(mut self, key: &str, value: impl Into<Value>) -> Self {
        if !self.has(key) {
            self.0.insert(key.to_owned(), value.into());
        }
        self
    }

    /// The same of a container that is in this namespace.
    #[must_use]
    pub(super) fn within(mut self, netns: &NetnsRef) -> Self {
        for key in ["netns", "pid"] {
            self.0.remove(key);
        }
        match netns {
            NetnsRef::Path(path) => self.with("netns", path.display().to_string()),
            NetnsRef::Pid(pid) => self.with("pid", i64::from(pid.get())),
        }
    }

    /// Whether anything stands for `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The keys of the table that stands for `key`, if one does.
    #[must_use]
    pub fn table(&self, key: &str) -> Option<Self> {
        self.0.get(key)?.as_table().cloned().map(Self)
    }

    /// The text that stands for `key`, if one does.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// The addresses that stand for `key`, one or a list of them; none if nothing does. `None` if they are none.
    #[must_use]
    pub fn addresses(&self, key: &str) -> Option<Vec<IpAddr>> {
        let address = |value: &Value| value.as_str()?.parse().ok();
        match self.0.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(all)) => all.iter().map(address).collect(),
            Some(one) => Some(vec![address(one)?]),
        }
    }

    /// As a text that says the same. It is empty if they cannot be written, which they always can.
    pub(super) fn text(&self) -> String {
        toml::to_string(&self.0).unwrap_or_default()
    }
}

impl From<Keys> for Value {
    fn from(keys: Keys) -> Self {
        Self::Table(keys.0)
    }
}

impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TableVisitor)
    }
}

struct TableVisitor;

impl<'de> Visitor<'de> for TableVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut table = Table::new();
        while let Some(key) = map.next_key::<String>()? {
            let shown = super::super::values::quoted(&key);
            if table.contains_key(&key) {
                return Err(de::Error::custom(format_args!("{shown} stands twice")));
            }
            let value = map.next_value::<Item>();
            let value = value.map_err(|why| de::Error::custom(format_args!("{shown}: {why}")))?;
            table.insert(key, value.0);
        }
        Ok(Keys(table))
    }
}

struct Item(Value);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true, false, a list, or keys and values")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Item, E> {
        Ok(Item(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Item, E> {
        Ok(Item(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Item, E> {
        let number = i64::try_from(value).map(|number| Item(number.into()));
        number.map_err(|_| E::custom(format_args!("{value} is above {}", i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Item, E> {
        Ok(Item(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Item, E> {
        Ok(Item(value.into()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Item, E> {
        Err(E::custom("null is no value; leave the key out"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        let mut values = Vec::new();
        while let Some(Item(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Item(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
        TableVisitor.visit_map(map).map(|keys| Item(keys.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Keys, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_as_text_of_a_configuration_says_them() {
        let keys = read(r#"{"name":"a\"b","tcp":[1,"2-3"],"up":true,"m":{"x":-1.5}}"#).unwrap();
        let text: Table = keys.text().parse().unwrap();
        assert_eq!(text, keys.0);
        let json = serde_json::to_string(&keys).unwrap();
        assert_eq!(read(&json).unwrap(), keys);
        assert_eq!(keys.table("m").unwrap(), Keys::default().with("x", -1.5));
        assert_eq!(keys.table("tcp"), None);
    }

    #[test]
    fn what_cannot_stand_in_a_configuration_is_named() {
        for (json, reason) in [
            (r#"{"a":1,"a":2}"#, "\"a\" stands twice"),
            (
                r#"{"a":null}"#,
                "\"a\": null is no value; leave the key out",
            ),
            (r#"{"a":{"b":[null]}}"#, "\"a\": \"b\": null is no value"),
            (
                r#"{"a":18446744073709551615}"#,
                "\"a\": 18446744073709551615 is above 9223372036854775807",
            ),
            ("[]", "invalid type: sequence, expected keys and values"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.starts_with(reason), "{error}");
        }
        let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
    }
}
