//! A YAML document as a tree of values that remember their line.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use std::collections::HashMap;

use super::error::ConfigError;

/// Deepest nesting that is read. Real files have six levels; without a limit a hostile one could exhaust the stack.
const DEPTH_MAX: usize = 64;
/// Most nodes in one document, aliases expanded: no configuration comes near it, a chain of aliases would pass it.
const NODE_COUNT_MAX: usize = 100_000;
/// Most letters of a value that a message repeats.
const SHOWN_LEN_MAX: usize = 80;

/// One value and the line (from 1) on which it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// What a value is. Scalars keep their text: only the reader of a key knows which type it should have.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping, with the key's own line: that is where an operator looks.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn null(line: usize) -> Self {
        Self {
            line,
            kind: Kind::Null,
        }
    }

    /// The value as a mistake shows it.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Scalar(text) => {
                let text = crate::secret::redact_url(text);
                let mut short: String = text.chars().take(SHOWN_LEN_MAX).collect();
                if short.len() < text.len() {
                    short.push('…');
                }
                format!("{short:?}")
            }
            Kind::List(items) => format!("a list of {}", items.len()),
            Kind::Map(_) => "a section of keys".to_owned(),
        }
    }
}

/// Parses one document. An empty text is an empty mapping; more than one document is refused.
pub(super) fn parse(file: &str, text: &str) -> Result<Node, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Builder {
        file,
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        node_count: 0,
    }
    .document()
}

struct Builder<'a> {
    file: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    node_count: usize,
}

impl<'a> Builder<'a> {
    fn document(mut self) -> Result<Node, ConfigError> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root.unwrap_or_else(|| Node::null(1))),
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(self.syntax(span, "a second document begins here, one is expected"));
                }
                Event::DocumentStart(_) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 0)?);
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), ConfigError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(scan_error(self.file, &error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, ConfigError> {
        self.count(span, 1)?;
        if depth > DEPTH_MAX {
            return Err(self.syntax(span, "nested too deep"));
        }
        let line = span.start.line();
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => (scalar(&text, style), anchor),
            Event::SequenceStart(anchor, _) => (Kind::List(self.list(depth)?), anchor),
            Event::MappingStart(anchor, _) => (Kind::Map(self.map(depth)?), anchor),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.syntax(span, "an alias of something that contains it"));
                };
                self.count(span, size(&node))?;
                return Ok(node);
            }
            _ => return Err(self.syntax(span, "a value is expected here")),
        };
        let node = Node { line, kind };
        if anchor > 0 {
            self.count(span, size(&node))?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, ConfigError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, ConfigError> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.syntax(span, "a key must be a word")),
            };
            if let Some(first) = entries
                .iter()
                .find(|entry| entry.key.eq_ignore_ascii_case(&key))
            {
                let reason = format!(
                    "key {key:?} stands here again, first on line {}: remove one",
                    first.line
                );
                return Err(self.syntax(span, &reason));
            }
            let (event, value_span) = self.next()?;
            let node = self.node(event, value_span, depth + 1)?;
            entries.push(Entry {
                key,
                line: span.start.line(),
                node,
            });
        }
    }

    fn count(&mut self, span: Span, nodes: usize) -> Result<(), ConfigError> {
        self.node_count = self.node_count.saturating_add(nodes);
        if self.node_count > NODE_COUNT_MAX {
            Err(self.syntax(span, "too many values in one file"))
        } else {
            Ok(())
        }
    }

    fn syntax(&self, span: Span, reason: &str) -> ConfigError {
        scan_error(self.file, &ScanError::new_str(span.start, reason))
    }
}

/// How many nodes a copy of `node` would add.
fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::Null | Kind::Scalar(_) => 1,
        Kind::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Map(entries) => 1 + entries.iter().map(|entry| size(&entry.node)).sum::<usize>(),
    }
}

/// Only a plain scalar can be null (YAML 1.2 core schema, section 10.3.2).
fn scalar(text: &str, style: ScalarStyle) -> Kind {
    if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        Kind::Null
    } else {
        Kind::Scalar(text.to_owned())
    }
}

fn scan_error(file: &str, error: &ScanError) -> ConfigError {
    let marker = error.marker();
    ConfigError::Syntax {
        file: file.to_owned(),
        line: marker.line(),
        column: marker.col() + 1,
        reason: error.info().to_owned(),
    }
}
