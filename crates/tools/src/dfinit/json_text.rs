//! A JSON object of which some keys are set, while the text of the others stays as somebody wrote it: a number may be longer than any
//! that we could hold.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The object, with its keys in their order.
#[derive(Debug, Default)]
pub(super) struct Settings {
    entries: Vec<(String, Entry)>,
    changed: bool,
}

#[derive(Debug)]
enum Entry {
    Kept(Box<RawValue>),
    Set(Value),
}

impl Settings {
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        // What is kept as text is looked at less closely: half a surrogate pair would pass.
        serde_json::from_str::<Value>(text)?;
        serde_json::from_str(text)
    }

    /// What `key` says; of several, the last one counts.
    pub(super) fn get(&self, key: &str) -> Option<Value> {
        let (_, entry) = self.entries.iter().rfind(|(name, _)| name == key)?;
        match entry {
            Entry::Kept(text) => Some(serde_json::from_str(text.get()).expect("parsed before")),
            Entry::Set(value) => Some(value.clone()),
        }
    }

    /// Makes `key` say `value`, behind the others if it is new. What says so already stays as it is.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        if self.get(key).as_ref() == Some(&value) {
            return;
        }
        self.changed = true;
        match self.entries.iter_mut().rfind(|(name, _)| name == key) {
            Some((_, entry)) => *entry = Entry::Set(value),
            None => self.entries.push((key.to_owned(), Entry::Set(value))),
        }
    }

    /// Whether anything was set.
    pub(super) fn changed(&self) -> bool {
        self.changed
    }

    /// The text, with `indent` before each key.
    pub(super) fn written(&self, indent: &str) -> String {
        let mut bytes = Vec::new();
        let style = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
        let mut writer = serde_json::Serializer::with_formatter(&mut bytes, style);
        self.serialize(&mut writer)
            .expect("a JSON object can be written to memory");
        bytes.push(b'\n');
        String::from_utf8(bytes).expect("JSON is UTF-8")
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (key, entry) in &self.entries {
            match entry {
                Entry::Kept(text) => map.serialize_entry(key, text)?,
                Entry::Set(value) => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Settings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
                let mut settings = Settings::default();
                while let Some((key, text)) = map.next_entry()? {
                    settings.entries.push((key, Entry::Kept(text)));
                }
                Ok(settings)
            }
        }
        deserializer.deserialize_map(Object)
    }
}
