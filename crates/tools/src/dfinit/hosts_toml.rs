//! One `hosts.toml`: the daemon's proxy becomes the host that is asked first; whatever else the file says stays.
//!
//! The order of the hosts is the order in which they are asked, so that ours is put in as text before the first table. A table
//! is ours if it is the proxy's or if the comment above it says so, as after a change of the proxy's address.

use toml_edit::{Array, Document, DocumentMut, Item, Table, Value, value};

use super::config::HostNamespace;
use super::plan::Unclear;

/// Stands above our table.
const MARK: &str = "# Written by dfinit: the Dragonfly daemon of this host is asked first.";

/// Whose pulls go through the proxy.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mirror<'a> {
    /// One registry's, which the proxy is told by a header.
    Of(&'a HostNamespace),
    /// Those of every registry that has no file of its own; containerd names it in the query (`ns`).
    Rest,
}

impl Mirror<'_> {
    /// The folder's name.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Of(registry) => &registry.name,
            Self::Rest => "_default",
        }
    }

    fn host(&self) -> Table {
        let mut host = Table::new();
        let (capabilities, skip_verify, ca) = match self {
            Self::Of(registry) => (
                registry.capabilities.clone(),
                registry.skip_verify,
                registry.ca.as_ref(),
            ),
            Self::Rest => (vec!["pull".to_owned(), "resolve".to_owned()], None, None),
        };
        host["capabilities"] = value(Array::from_iter(capabilities));
        set_trust(&mut host, skip_verify, ca);
        if let Self::Of(registry) = self {
            let mut header = Table::new();
            header["X-Dragonfly-Registry"] = value(&registry.server);
            host["header"] = Item::Table(header);
        }
        host
    }
}

/// The text that `hosts.toml` shall have.
pub(super) fn edit(
    before: Option<&str>,
    mirror: &Mirror<'_>,
    proxy: &str,
) -> Result<String, Unclear> {
    let text = before.unwrap_or("");
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error| Unclear::syntax("TOML", &error))?;
    check_form(&document)?;
    let host = mirror.host();
    let stale = ours(&document, proxy);
    let in_place = stale == [proxy]
        && hosts(&document).first().map(String::as_str) == Some(proxy)
        && same(&document["host"][proxy], &host);
    if !in_place {
        for name in stale {
            if let Some(hosts) = document["host"].as_table_mut() {
                hosts.remove(&name);
            }
        }
    }
    if let Mirror::Of(registry) = mirror {
        set_server(&mut document, registry);
    }
    let text = document.to_string();
    Ok(match in_place {
        true => text,
        false => insert(&text, &block(proxy, host)),
    })
}

/// What is set for the registry itself, which is asked when the proxy does not answer.
fn set_server(document: &mut DocumentMut, registry: &HostNamespace) {
    let root = document.as_table_mut();
    if root.get("server").and_then(Item::as_str) != Some(&registry.server) {
        root["server"] = value(&registry.server);
    }
    set_trust(root, registry.skip_verify, registry.ca.as_ref());
}

fn set_trust(table: &mut Table, skip_verify: Option<bool>, ca: Option<&Vec<String>>) {
    if let Some(skip_verify) = skip_verify
        && table.get("skip_verify").and_then(Item::as_bool) != Some(skip_verify)
    {
        table["skip_verify"] = value(skip_verify);
    }
    if let Some(ca) = ca {
        let wanted = Array::from_iter(ca);
        let same = |array: &Array| {
            array
                .iter()
                .map(Value::as_str)
                .eq(wanted.iter().map(Value::as_str))
        };
        if !table.get("ca").and_then(Item::as_array).is_some_and(same) {
            table["ca"] = value(wanted);
        }
    }
}

fn check_form(document: &DocumentMut) -> Result<(), Unclear> {
    let plain = |item: &Item| item.as_table().is_some_and(|table| !table.is_dotted());
    let fits = match document.get("host") {
        None => true,
        Some(hosts) => {
            plain(hosts)
                && hosts
                    .as_table()
                    .is_some_and(|hosts| hosts.iter().all(|(_, host)| plain(host)))
        }
    };
    if fits {
        return Ok(());
    }
    Err(Unclear::new(
        "its hosts are not [host.\"URL\"] tables, so that their order cannot be told",
        "write them as tables, then try again",
    ))
}

/// The names of the hosts in the order in which they are asked.
fn hosts(document: &DocumentMut) -> Vec<String> {
    let mut found: Vec<(isize, String)> = tables(document)
        .map(|(name, host)| (host.position().unwrap_or(isize::MAX), name.to_owned()))
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// The names of the hosts that an earlier run wrote, or that are the proxy.
fn ours(document: &DocumentMut, proxy: &str) -> Vec<String> {
    let marked = |host: &Table| {
        host.decor()
            .prefix()
            .and_then(|prefix| prefix.as_str())
            .is_some_and(|prefix| prefix.contains(MARK))
    };
    tables(document)
        .filter(|(name, host)| *name == proxy || marked(host))
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn tables(document: &DocumentMut) -> impl Iterator<Item = (&str, &Table)> {
    let hosts = document.get("host").and_then(Item::as_table);
    hosts
        .into_iter()
        .flat_map(Table::iter)
        .filter_map(|(name, host)| Some((name, host.as_table()?)))
}

/// Whether two items say the same, whatever their form.
fn same(a: &Item, b: &Table) -> bool {
    fn told(item: &Item) -> String {
        match item {
            Item::Table(table) => {
                let mut rows: Vec<String> = table
                    .iter()
                    .map(|(key, item)| format!("{key:?}: {}", told(item)))
                    .collect();
                rows.sort();
                format!("{{{}}}", rows.join(", "))
            }
            Item::Value(Value::Array(array)) => {
                let items: Vec<String> = array
                    .iter()
                    .map(|value| value.clone().decorated("", "").to_string())
                    .collect();
                format!("[{}]", items.join(", "))
            }
            Item::Value(value) => value.clone().decorated("", "").to_string(),
            other => other.to_string(),
        }
    }
    told(a) == told(&Item::Table(b.clone()))
}

/// Our table as text.
fn block(proxy: &str, mut host: Table) -> String {
    let mut hosts = Table::new();
    hosts.set_implicit(true);
    host.decor_mut().set_prefix(format!("{MARK}\n"));
    hosts[proxy] = Item::Table(host);
    let mut document = DocumentMut::new();
    document["host"] = Item::Table(hosts);
    document.to_string()
}

/// `text` with `block` before its first table, one empty line around it.
fn insert(text: &str, block: &str) -> String {
    let at = first_table(text);
    let (head, tail) = (text[..at].trim_end(), text[at..].trim_start_matches('\n'));
    let mut whole = String::new();
    if !head.is_empty() {
        whole.push_str(head);
        whole.push_str("\n\n");
    }
    whole.push_str(block.trim_end());
    whole.push('\n');
    if !tail.trim().is_empty() {
        whole.push('\n');
        whole.push_str(tail);
    }
    whole
}

/// Where the first table begins, with the comment above it; the end of the text if there is none.
fn first_table(text: &str) -> usize {
    fn headers(table: &Table, found: &mut Vec<usize>) {
        for (_, item) in table {
            if let Some(inner) = item.as_table() {
                if !inner.is_implicit() && !inner.is_dotted() {
                    found.extend(inner.span().map(|span| span.start));
                }
                headers(inner, found);
            }
        }
    }
    let mut found = Vec::new();
    if let Ok(document) = Document::parse(text) {
        headers(document.as_table(), &mut found);
    }
    let Some(mut at) = found.into_iter().min() else {
        return text.len();
    };
    // Back over what stands above it: its own line's indentation, then lines of comments.
    at = text[..at].rfind('\n').map_or(0, |end| end + 1);
    while at > 0 {
        let above = text[..at - 1].rfind('\n').map_or(0, |end| end + 1);
        if !text[above..at].trim_start().starts_with('#') {
            break;
        }
        at = above;
    }
    at
}

#[cfg(test)]
#[path = "tests/hosts_toml.rs"]
mod tests;
