//! One `hosts.toml`: the daemon's proxy becomes the host that is asked first; whatever else the file says stays.
//!
//! The order of the hosts is the order in which they are asked, so that ours is put in as text before the first table. A table
//! is ours if it is the proxy's or if the comment above it says so, as after a change of the proxy's address. What somebody has
//! added to it goes with it.

use toml_edit::{Array, Document, DocumentMut, Item, Table, TableLike, Value, value};

use super::config::HostNamespace;
use super::plan::Unclear;
use super::written::set_value;

/// The header that tells the daemon which registry is meant.
const REGISTRY_HEADER: &str = "X-Dragonfly-Registry";

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

    /// Makes `host`, the table of the proxy, say what it must.
    fn set_host(&self, host: &mut Table) -> Result<(), Unclear> {
        let (capabilities, skip_verify, ca) = match self {
            Self::Of(registry) => (
                registry.capabilities.clone(),
                registry.skip_verify,
                registry.ca.as_ref(),
            ),
            Self::Rest => (vec!["pull".to_owned(), "resolve".to_owned()], None, None),
        };
        set_list(host, "capabilities", &capabilities);
        set_trust(host, skip_verify, ca);
        match self {
            Self::Of(registry) => {
                let header = host
                    .entry("header")
                    .or_insert_with(|| Item::Table(Table::new()));
                let header = header.as_table_like_mut().ok_or_else(|| {
                    Unclear::new(
                        "the header of the daemon's host is not a table",
                        "write it as one, then try again",
                    )
                })?;
                set_text(header, REGISTRY_HEADER, &registry.server);
            }
            // It would send the pulls of all registries to one.
            Self::Rest => {
                let header = host.get_mut("header").and_then(Item::as_table_like_mut);
                if let Some(header) = header
                    && header.remove(REGISTRY_HEADER).is_some()
                    && header.is_empty()
                {
                    host.remove("header");
                }
            }
        }
        Ok(())
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
    if let Mirror::Of(registry) = mirror {
        set_server(&mut document, registry);
    }
    let names = ours(&document, proxy);
    if names == [proxy] && hosts(&document).first().map(String::as_str) == Some(proxy) {
        let before = document.to_string();
        mirror.set_host(table(&mut document, proxy))?;
        if document.to_string() != before {
            mark(table(&mut document, proxy));
        }
        return Ok(document.to_string());
    }
    let mut host = take(&mut document, &names);
    mirror.set_host(&mut host)?;
    mark(&mut host);
    Ok(insert(&document.to_string(), &block(proxy, host)))
}

/// The table of the host `name`, which is one as [`check_form`] found.
fn table<'t>(document: &'t mut DocumentMut, name: &str) -> &'t mut Table {
    document["host"][name]
        .as_table_mut()
        .expect("hosts are tables, or they were refused")
}

/// Takes the hosts of these names out, as one table: what the first of them says counts.
fn take(document: &mut DocumentMut, names: &[String]) -> Table {
    let hosts = document.get_mut("host").and_then(Item::as_table_mut);
    let taken = hosts.map(|hosts| names.iter().filter_map(|name| hosts.remove(name)).collect());
    let taken: Vec<Item> = taken.unwrap_or_default();
    let mut tables = taken.into_iter().filter_map(|item| item.into_table().ok());
    let mut first = tables.next().unwrap_or_default();
    for (key, item) in tables.flatten() {
        if !first.contains_key(&key) {
            first.insert(&key, item);
        }
    }
    first
}

/// Writes above `host` that it is ours, below what is said there already.
fn mark(host: &mut Table) {
    if is_marked(host) {
        return;
    }
    let above = prefix(host).to_owned();
    let indent_at = above.rfind('\n').map_or(0, |end| end + 1);
    let (above, indent) = above.split_at(indent_at);
    host.decor_mut()
        .set_prefix(format!("{above}{indent}{MARK}\n{indent}"));
}

/// What is set for the registry itself, which is asked when the proxy does not answer.
fn set_server(document: &mut DocumentMut, registry: &HostNamespace) {
    let root = document.as_table_mut();
    set_text(root, "server", &registry.server);
    set_trust(root, registry.skip_verify, registry.ca.as_ref());
}

fn set_trust(table: &mut Table, skip_verify: Option<bool>, ca: Option<&Vec<String>>) {
    if let Some(skip_verify) = skip_verify
        && table.get("skip_verify").and_then(Item::as_bool) != Some(skip_verify)
    {
        set_value(table, "skip_verify", value(skip_verify));
    }
    if let Some(ca) = ca {
        set_list(table, "ca", ca);
    }
}

/// Sets `key` unless it says `text` already, in whatever form.
fn set_text(table: &mut dyn TableLike, key: &str, text: &str) {
    if table.get(key).and_then(Item::as_str) != Some(text) {
        set_value(table, key, value(text));
    }
}

/// Sets `key` unless it lists these texts already, in whatever form.
fn set_list(table: &mut dyn TableLike, key: &str, texts: &[String]) {
    let wanted = Array::from_iter(texts);
    let same = |array: &Array| {
        array
            .iter()
            .map(Value::as_str)
            .eq(wanted.iter().map(Value::as_str))
    };
    if !table.get(key).and_then(Item::as_array).is_some_and(same) {
        set_value(table, key, value(wanted));
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

/// The names of the hosts that an earlier run wrote, or that are the proxy, which is the first.
fn ours(document: &DocumentMut, proxy: &str) -> Vec<String> {
    let mut names: Vec<String> = tables(document)
        .filter(|(name, host)| *name == proxy || is_marked(host))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort_by_key(|name| name != proxy);
    names
}

fn is_marked(host: &Table) -> bool {
    prefix(host).contains(MARK)
}

/// The lines above the table.
fn prefix(host: &Table) -> &str {
    let prefix = host.decor().prefix();
    prefix.and_then(|prefix| prefix.as_str()).unwrap_or("")
}

fn tables(document: &DocumentMut) -> impl Iterator<Item = (&str, &Table)> {
    let hosts = document.get("host").and_then(Item::as_table);
    hosts
        .into_iter()
        .flat_map(Table::iter)
        .filter_map(|(name, host)| Some((name, host.as_table()?)))
}

/// Our table as text.
fn block(proxy: &str, host: Table) -> String {
    let mut hosts = Table::new();
    hosts.set_implicit(true);
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
    whole.push_str(block.trim_start_matches('\n').trim_end());
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
