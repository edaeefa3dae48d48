//! Directory listings of web servers.
//!
//! HTTP has no listings; what servers offer is a page of links (nginx `autoindex`, Apache `mod_autoindex`, Python's
//! `http.server`, caddy) or nginx's `autoindex_format json`. Only links to something directly inside the directory count, so that neither the
//! sorting links of Apache nor the link to the parent, nor anything a hostile page points to, leaves the directory.

use std::collections::{BTreeSet, VecDeque};

use serde::Deserialize;
use url::Url;

use super::HttpSource;
use crate::request::LEVELS;
use crate::{Entry, Get, ListLimits, Redacted, Request, Source, SourceError};

/// Longest page of one directory.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Lists `request.url` and the directories below it, breadth first.
pub(super) async fn list(
    source: &HttpSource,
    request: &Request,
    limits: ListLimits,
) -> Result<Vec<Entry>, SourceError> {
    let shown = || Redacted::url(&request.url);
    if !request.url.path().ends_with('/') {
        let reason = "the URL of a directory must end with /".to_owned();
        return Err(SourceError::NotListable {
            url: shown(),
            reason,
        });
    }
    // The directory itself says that it is there, if it is empty.
    let mut entries = vec![Entry::directory(request.url.clone())];
    let mut seen = BTreeSet::from([request.url.as_str().to_owned()]);
    let mut waiting = VecDeque::from([(request.url.clone(), 1)]);
    while let Some((directory, level)) = waiting.pop_front() {
        for entry in list_one(source, request, &directory, level).await? {
            if !seen.insert(entry.url.as_str().to_owned()) {
                continue;
            }
            if entries.len() > limits.entries {
                return Err(SourceError::ListTooLarge {
                    url: shown(),
                    limit: limits.entries,
                    what: "entries",
                });
            }
            if entry.is_dir {
                if level >= limits.depth {
                    return Err(SourceError::ListTooLarge {
                        url: shown(),
                        limit: limits.depth,
                        what: LEVELS,
                    });
                }
                waiting.push_back((entry.url.clone(), level + 1));
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

async fn list_one(
    source: &HttpSource,
    request: &Request,
    directory: &Url,
    level: usize,
) -> Result<Vec<Entry>, SourceError> {
    let mut request = request.clone();
    request.url = directory.clone();
    let content = source.get(&request, Get::whole()).await?;
    let kind = content
        .facts
        .header
        .get("content-type")
        .cloned()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let refused = |reason: String| SourceError::NotListable {
        url: Redacted::url(directory),
        reason,
    };
    let is_json = kind.starts_with("application/json");
    if !is_json && !kind.starts_with("text/html") && !kind.starts_with("application/xhtml") {
        return Err(refused(format!(
            "the origin answered {kind:?} where a listing is HTML or JSON: does it list directories?"
        )));
    }
    let page = content
        .body
        .collect(PAGE_BYTES_MAX)
        .await
        .map_err(|error| match error {
            SourceError::TooLong { .. } => SourceError::ListTooLarge {
                url: Redacted::url(directory),
                limit: PAGE_BYTES_MAX,
                what: "bytes in one listing",
            },
            other => other,
        })?;
    if is_json {
        return entries_of_json(&page, directory).map_err(refused);
    }
    let page = String::from_utf8_lossy(&page);
    let entries = entries_of_html(&page, directory);
    // What a listing names is believed to be a directory.
    if entries.is_empty() && level == 1 && !shows_empty_directory(&page) {
        return Err(refused(
            "the page there links to nothing in it and does not look like a listing".to_owned(),
        ));
    }
    Ok(entries)
}

/// Whether a page without a link to anything in the directory is a listing all the same: servers say so in its title or link to the directory
/// above; Go's writes nothing but an empty block.
fn shows_empty_directory(page: &str) -> bool {
    let mut rest = page;
    let mut links = std::iter::from_fn(|| next_link(&mut rest));
    let has_title = ["index of", "directory listing", "<pre>\n</pre>"]
        .iter()
        .any(|words| find_ignoring_case(page, words).is_some());
    has_title || links.any(|link| matches!(link.href, ".." | "../"))
}

#[derive(Deserialize)]
struct JsonEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: Option<u64>,
}

/// nginx: `[{"name": "a", "type": "file", "mtime": "…", "size": 3}]`. Names are not escaped.
fn entries_of_json(page: &[u8], directory: &Url) -> Result<Vec<Entry>, String> {
    let listed: Vec<JsonEntry> = serde_json::from_slice(page)
        .map_err(|error| format!("its JSON is no nginx listing: {error}"))?;
    let entries = listed.into_iter().filter_map(|listed| {
        let is_dir = listed.kind == "directory";
        if listed.name.is_empty() || listed.name.contains('/') {
            return None;
        }
        let mut url = directory.clone();
        {
            let mut segments = url.path_segments_mut().ok()?;
            segments.pop_if_empty().push(&listed.name);
            if is_dir {
                segments.push("");
            }
        }
        inside(&url, directory).then_some(Entry {
            url,
            content_length: if is_dir { None } else { listed.size },
            is_dir,
        })
    });
    Ok(entries.collect())
}

fn entries_of_html(page: &str, directory: &Url) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut rest = page;
    while let Some(link) = next_link(&mut rest) {
        let Ok(url) = directory.join(&unescape(link.href)) else {
            continue;
        };
        if url.query().is_some() || url.fragment().is_some() || !inside(&url, directory) {
            continue;
        }
        let is_dir = url.path().ends_with('/');
        entries.push(Entry {
            url,
            content_length: if is_dir { None } else { exact_size(link.after) },
            is_dir,
        });
    }
    entries
}

/// Whether `url` lies directly in `directory`.
fn inside(url: &Url, directory: &Url) -> bool {
    if url.origin() != directory.origin() {
        return false;
    }
    let Some(name) = url.path().strip_prefix(directory.path()) else {
        return false;
    };
    let name = name.strip_suffix('/').unwrap_or(name);
    !name.is_empty()
        && !name.contains('/')
        && !name.to_ascii_lowercase().contains("%2f")
        && name != "."
        && name != ".."
}

struct Link<'a> {
    href: &'a str,
    /// The text between the link and the next tag.
    after: &'a str,
}

/// Finds the next `<a … href="…">…</a>` and moves `rest` behind it.
fn next_link<'a>(rest: &mut &'a str) -> Option<Link<'a>> {
    loop {
        let begin = find_ignoring_case(rest, "<a")?;
        let tag = &rest[begin + 2..];
        let end = tag.find('>')?;
        let (attributes, body) = (&tag[..end], &tag[end + 1..]);
        *rest = body;
        if !attributes.starts_with(|c: char| c.is_ascii_whitespace()) {
            continue;
        }
        if let Some(href) = href_of(attributes) {
            let after = find_ignoring_case(body, "</a>").map_or("", |close| &body[close + 4..]);
            let after = after.split('<').next().unwrap_or_default();
            return Some(Link { href, after });
        }
    }
}

fn href_of(attributes: &str) -> Option<&str> {
    let begin = find_ignoring_case(attributes, "href")?;
    let value = attributes[begin + 4..]
        .trim_start()
        .strip_prefix('=')?
        .trim_start();
    match value.chars().next()? {
        quote @ ('"' | '\'') => value[1..].split(quote).next(),
        _ => value.split_ascii_whitespace().next(),
    }
}

/// `needle` is ASCII; the position is a character boundary as ASCII bytes never occur inside other characters.
fn find_ignoring_case(text: &str, needle: &str) -> Option<usize> {
    text.as_bytes()
        .windows(needle.len())
        .position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

/// The last word behind a link, if it is a plain number: `19-Nov-2026 10:00  4096`. Rounded sizes (`4.0K`) tell nothing exact.
fn exact_size(after: &str) -> Option<u64> {
    let mut words = after.split_ascii_whitespace();
    let last = words.next_back()?;
    // A lone number might be anything; sizes stand behind a date.
    words.next_back()?;
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        last.parse().ok()
    } else {
        None
    }
}

/// The character references that servers write into links.
fn unescape(href: &str) -> String {
    href.replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&#x27;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(page: &str, expected: &[(&str, Option<u64>, bool)]) {
        let directory = Url::parse("http://h/data/").unwrap();
        let entries = entries_of_html(page, &directory);
        let found: Vec<(&str, Option<u64>, bool)> = entries
            .iter()
            .map(|entry| (entry.url.as_str(), entry.content_length, entry.is_dir))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_nginx_page_is_read() {
        check(
            "<html>\r\n<head><title>Index of /data/</title></head>\r\n<body>\r\n<h1>Index of /data/</h1><hr><pre><a href=\"../\">../</a>\r\n\
             <a href=\"sub/\">sub/</a>                      19-Nov-2026 10:00                   -\r\n\
             <a href=\"a%20b.bin\">a b.bin</a>             19-Nov-2026 10:00                4096\r\n\
             <a href=\"rounded\">rounded</a>               19-Nov-2026 10:00                  4K\r\n</pre><hr></body>\r\n</html>",
            &[
                ("http://h/data/sub/", None, true),
                ("http://h/data/a%20b.bin", Some(4096), false),
                ("http://h/data/rounded", None, false),
            ],
        );
    }

    #[test]
    fn an_apache_table_is_read_without_its_sorting_links() {
        check(
            "<table><tr><th><a href=\"?C=N;O=D\">Name</a></th></tr><tr><td><a href=\"/\">Parent Directory</a></td></tr>\
             <tr><td><A HREF='f&amp;g.txt'>f&amp;g.txt</A></td><td align=right>2026-11-19 10:00  </td><td> 12 </td></tr></table>",
            &[("http://h/data/f&g.txt", None, false)],
        );
    }

    #[test]
    fn links_out_of_the_directory_are_left_out() {
        check(
            "<a href=\"../x\">x</a><a href=\"/etc/passwd\">p</a><a href=\"http://other/data/f\">o</a><a href=\"a/b\">deep</a>\
             <a href=\"a%2Fb\">e</a><a href=\".\">.</a><a name=x>n</a><abbr>a</abbr><a href=ok>ok</a><a href=\"#top\">t</a>",
            &[("http://h/data/ok", None, false)],
        );
    }

    #[test]
    fn an_empty_directory_is_not_any_page() {
        for page in [
            "<html><head><title>Index of /d/</title></head><body><a href=\"../\">../</a></body>",
            "<title>Directory listing for /d/</title><ul>\n</ul>",
            "<pre>\n</pre>\n",
            "<a href=../>up</a>",
        ] {
            assert!(shows_empty_directory(page), "{page}");
        }
        assert!(!shows_empty_directory(
            "<title>Welcome</title><a href=/>home</a>"
        ));
    }

    #[test]
    fn an_nginx_json_listing_is_read() {
        let directory = Url::parse("http://h/data/").unwrap();
        let page = br#"[{"name":"sub","type":"directory","mtime":"x"},{"name":"a b%","type":"file","mtime":"x","size":7},{"name":"..","type":"directory"},{"name":"x/y","type":"file"}]"#;
        let entries = entries_of_json(page, &directory).unwrap();
        let urls: Vec<&str> = entries.iter().map(|entry| entry.url.as_str()).collect();
        assert_eq!(urls, ["http://h/data/sub/", "http://h/data/a%20b%25"]);
        assert_eq!(entries[1].content_length, Some(7));
        assert!(entries_of_json(b"{}", &directory).is_err());
    }

    proptest! {
        #[test]
        fn no_page_makes_the_parser_panic_or_leave_the_directory(page in "(<a |href=|\"|'|>|</a>|\\.\\./|/|%2f|ä|x| |<|&amp;|1){0,40}") {
            let directory = Url::parse("http://h/data/").unwrap();
            for entry in entries_of_html(&page, &directory) {
                prop_assert!(entry.url.as_str().starts_with("http://h/data/"));
            }
        }
    }
}
