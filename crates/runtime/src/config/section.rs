//! Reading a document key by key, noting what is wrong on the way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::error::{ConfigError, Mistake, Warning};
use super::suggest;
use super::tree::{self, Entry, Kind, Node};
use super::value::Scalar;

/// Longest file that is read. The largest sample of Dragonfly v2 has 20 KiB.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// A configuration file as written, and what was found wrong with it so far.
pub struct Document {
    file: String,
    root: Node,
    notes: RefCell<Notes>,
}

/// A configuration as meant, with what its author should hear.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// Keys that have no effect. Log each one once logging is on.
    pub warnings: Vec<Warning>,
}

#[derive(Default)]
struct Notes {
    mistakes: Vec<Mistake>,
    /// Path of each section that was read -> its keys that were asked for, as they are spelt in the code.
    asked: HashMap<String, BTreeSet<&'static str>>,
}

impl Document {
    /// Reads and parses `file`.
    ///
    /// # Errors
    /// The file cannot be read, is longer than 1 MiB, or is not YAML.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable {
            file: file.to_owned(),
            error,
        };
        let len = std::fs::metadata(file).map_err(unreadable)?.len();
        if len > FILE_LEN_MAX {
            return Err(ConfigError::TooLarge {
                file: file.to_owned(),
                len,
                limit: FILE_LEN_MAX,
            });
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        Self::parse(&file.display().to_string(), &text)
    }

    /// As [`Document::load`], but a missing file is an empty one: for a default path that nobody named.
    ///
    /// # Errors
    /// As [`Document::load`], except for a missing file.
    pub fn load_if_present(file: &Path) -> Result<Self, ConfigError> {
        match Self::load(file) {
            Err(ConfigError::Unreadable { error, .. })
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                Self::parse(&file.display().to_string(), "")
            }
            other => other,
        }
    }

    /// Parses `text`; `file` is the name used in messages.
    ///
    /// # Errors
    /// The text is not YAML, or its top level is not a set of keys.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let root = tree::parse(file, text)?;
        let notes = RefCell::default();
        let document = Self {
            file: file.to_owned(),
            root,
            notes,
        };
        if !matches!(document.root.kind, Kind::Map(_) | Kind::Null) {
            let expected = "keys with values, such as \"server:\"";
            document.note(
                "the file",
                document.root.line,
                Some(document.root.describe()),
                expected,
            );
        }
        Ok(document)
    }

    /// The top level of the file.
    pub fn root(&self) -> Section<'_> {
        Section::new(self, String::new(), &self.root)
    }

    /// Gives `value`, read from this document, if nothing was wrong.
    ///
    /// # Errors
    /// [`ConfigError::Mistakes`] with every mistake, in the order of their lines.
    pub fn finish<T>(self, value: T) -> Result<Loaded<T>, ConfigError> {
        let mut notes = self.notes.into_inner();
        if !notes.mistakes.is_empty() {
            notes.mistakes.sort_by_key(|mistake| mistake.line);
            return Err(ConfigError::Mistakes(notes.mistakes));
        }
        let mut warnings = Vec::new();
        unknown_keys(&self.file, &self.root, "", &notes.asked, &mut warnings);
        Ok(Loaded { value, warnings })
    }

    fn note(&self, key: &str, line: usize, found: Option<String>, expected: &str) {
        let mistake = Mistake {
            file: self.file.clone(),
            line,
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let mut notes = self.notes.borrow_mut();
        if !notes.mistakes.contains(&mistake) {
            notes.mistakes.push(mistake);
        }
    }
}

/// A set of keys somewhere in a document. An absent section reads as an empty one, so that defaults apply.
///
/// The methods never fail: what is wrong is noted in the document, and the answer is the default or `None`.
#[derive(Clone)]
pub struct Section<'d> {
    document: &'d Document,
    path: String,
    line: usize,
    entries: &'d [Entry],
}

impl<'d> Section<'d> {
    fn new(document: &'d Document, path: String, node: &'d Node) -> Self {
        document
            .notes
            .borrow_mut()
            .asked
            .entry(path.clone())
            .or_default();
        let entries = match &node.kind {
            Kind::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        Self {
            document,
            path,
            line: node.line,
            entries,
        }
    }

    /// The section under `key`; an empty one if it is absent.
    pub fn section(&self, key: &'static str) -> Section<'d> {
        self.optional_section(key).unwrap_or_else(|| Section {
            document: self.document,
            path: self.path_of(key),
            line: 0,
            entries: &[],
        })
    }

    /// The section under `key`; `None` if it is absent. For blocks whose presence has a meaning.
    pub fn optional_section(&self, key: &'static str) -> Option<Section<'d>> {
        let entry = self.find(key)?;
        if !matches!(entry.node.kind, Kind::Map(_)) {
            self.mistake(key, "a section of keys");
            return None;
        }
        Some(Section::new(self.document, self.path_of(key), &entry.node))
    }

    /// The list of sections under `key`; empty if it is absent.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let path = self.path_of(key);
        let mut sections = Vec::new();
        for (index, node) in self.items(key).unwrap_or_default().iter().enumerate() {
            let path = format!("{path}[{index}]");
            match node.kind {
                Kind::Map(_) => sections.push(Section::new(self.document, path, node)),
                _ => {
                    self.document
                        .note(&path, node.line, Some(node.describe()), "a section of keys")
                }
            }
        }
        sections
    }

    /// The value of `key`, if it is there and right.
    pub fn get<T: Scalar>(&self, key: &'static str) -> Option<T> {
        let entry = self.find(key)?;
        self.read(&self.path_of(key), &entry.node, entry.line)
    }

    /// The value of `key`, else `default`.
    pub fn get_or<T: Scalar>(&self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`; its absence is a mistake, whose text says `expected`.
    pub fn required<T: Scalar>(&self, key: &'static str) -> Option<T> {
        if self.find(key).is_none() {
            self.mistake(key, T::EXPECTED);
        }
        self.get(key)
    }

    /// The value of `key`, else `default`; a value for which `accept` is false is a mistake, whose text says `expected`.
    pub fn checked<T: Scalar>(
        &self,
        key: &'static str,
        default: T,
        expected: &str,
        accept: impl FnOnce(&T) -> bool,
    ) -> T {
        match self.get(key) {
            Some(value) if accept(&value) => value,
            Some(_) => {
                self.wrong(key, expected, T::SECRET);
                default
            }
            None => default,
        }
    }

    /// The choice that the value of `key` names, else `default`.
    pub fn one_of<T: Clone>(&self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(name) = self.get::<String>(key) else {
            return default;
        };
        match choices.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => value.clone(),
            None => {
                let names: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
                self.mistake(key, &format!("one of {}", names.join(", ")));
                default
            }
        }
    }

    /// The list of values under `key`, if it is there; wrong items are left out and noted.
    pub fn list<T: Scalar>(&self, key: &'static str) -> Option<Vec<T>> {
        let path = self.path_of(key);
        let items = self.items(key)?;
        let values = items.iter().enumerate();
        Some(
            values
                .filter_map(|(index, node)| self.read(&format!("{path}[{index}]"), node, node.line))
                .collect(),
        )
    }

    /// The free set of names and values under `key`; empty if it is absent.
    pub fn map<T: Scalar>(&self, key: &'static str) -> BTreeMap<String, T> {
        let Some(entry) = self.find(key) else {
            return BTreeMap::new();
        };
        let Kind::Map(entries) = &entry.node.kind else {
            self.mistake(key, "names with values");
            return BTreeMap::new();
        };
        let path = self.path_of(key);
        entries
            .iter()
            .filter_map(|entry| {
                let value = self.read(&format!("{path}.{}", entry.key), &entry.node, entry.line)?;
                Some((entry.key.clone(), value))
            })
            .collect()
    }

    /// Notes that the value of `key` (or its absence) is wrong, for rules that take more than one key to see.
    pub fn mistake(&self, key: &'static str, expected: &str) {
        self.wrong(key, expected, false);
    }

    /// As [`Section::mistake`], for a value that may hold a secret and is not shown.
    pub fn mistake_in_secret(&self, key: &'static str, expected: &str) {
        self.wrong(key, expected, true);
    }

    /// Says that `keys` are known and without effect here, so that they are not warned about.
    pub fn accept_unused(&self, keys: &[&'static str]) {
        for key in keys {
            self.ask(key);
        }
    }

    /// Whether `key` has a value.
    pub fn has(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// Whether `key` is written with an empty or `null` value. For sections that `null` switches off.
    pub fn is_null(&self, key: &'static str) -> bool {
        self.ask(key);
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.key.eq_ignore_ascii_case(key));
        entry.is_some_and(|entry| matches!(entry.node.kind, Kind::Null))
    }

    /// The full path of `key`, such as `upload.server.port`: what an error at run time should name.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn wrong(&self, key: &'static str, expected: &str, secret: bool) {
        let path = self.path_of(key);
        match self.find(key) {
            Some(entry) => self.document.note(
                &path,
                entry.line,
                Some(shown(&entry.node, secret)),
                expected,
            ),
            None => self.document.note(&path, self.line, None, expected),
        }
    }

    fn ask(&self, key: &'static str) {
        self.document
            .notes
            .borrow_mut()
            .asked
            .entry(self.path.clone())
            .or_default()
            .insert(key);
    }

    fn find(&self, key: &'static str) -> Option<&'d Entry> {
        self.ask(key);
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.key.eq_ignore_ascii_case(key))?;
        (!matches!(entry.node.kind, Kind::Null)).then_some(entry)
    }

    fn items(&self, key: &'static str) -> Option<&'d [Node]> {
        let entry = self.find(key)?;
        match &entry.node.kind {
            Kind::List(items) => Some(items),
            _ => {
                self.mistake(key, "a list");
                None
            }
        }
    }

    fn read<T: Scalar>(&self, path: &str, node: &Node, line: usize) -> Option<T> {
        let value = match &node.kind {
            Kind::Scalar(text) => T::parse(text),
            _ => None,
        };
        if value.is_none() {
            self.document
                .note(path, line, Some(shown(node, T::SECRET)), T::EXPECTED);
        }
        value
    }
}

/// A wrong value as a mistake shows it.
fn shown(node: &Node, secret: bool) -> String {
    if secret {
        "<secret>".to_owned()
    } else {
        node.describe()
    }
}

/// Collects the keys below `node` that were not asked for. Maps that were read as a whole were never sections and are
/// not looked into.
fn unknown_keys(
    file: &str,
    node: &Node,
    path: &str,
    asked: &HashMap<String, BTreeSet<&'static str>>,
    warnings: &mut Vec<Warning>,
) {
    match &node.kind {
        Kind::Map(entries) => {
            let Some(known) = asked.get(path) else { return };
            for entry in entries {
                let key = if path.is_empty() {
                    entry.key.clone()
                } else {
                    format!("{path}.{}", entry.key)
                };
                match known
                    .iter()
                    .find(|known| known.eq_ignore_ascii_case(&entry.key))
                {
                    Some(known) => {
                        let spelt = if path.is_empty() {
                            (*known).to_owned()
                        } else {
                            format!("{path}.{known}")
                        };
                        unknown_keys(file, &entry.node, &spelt, asked, warnings);
                    }
                    None => {
                        let suggestion =
                            suggest::nearest(&entry.key, known.iter().copied()).map(str::to_owned);
                        warnings.push(Warning {
                            file: file.to_owned(),
                            line: entry.line,
                            key,
                            suggestion,
                        });
                    }
                }
            }
        }
        Kind::List(items) => {
            for (index, item) in items.iter().enumerate() {
                unknown_keys(file, item, &format!("{path}[{index}]"), asked, warnings);
            }
        }
        Kind::Null | Kind::Scalar(_) => {}
    }
}
