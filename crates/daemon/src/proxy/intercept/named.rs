//! Hosts whose names stand in a regular expression.
//!
//! `https://cdn-lfs\.hf\.co/repos`, `files.pythonhosted.org.*\.whl` and `\.amazonaws\.com/` name hosts, `blobs/sha256.*` and
//! `\.tar\.gz` do not. What is looked at is the parsed expression: literal text, with `.` standing for itself, as people leave out the
//! backslash. A name counts if it stands where a host stands: behind `//`, in front of `/` or `:`, or at the beginning of such a
//! text and not looking like the ending of a file name. When in doubt, no: `proxy.interceptHosts` is there to be explicit.

use regex_syntax::hir::{Class, Hir, HirKind};
use source::http::HostPattern;

/// Ends a piece of literal text.
const GAP: char = '\0';

/// Last labels that tell of a file rather than a host, unless the place is clearly that of a host.
const FILE_ENDINGS: [&str; 28] = [
    "apk",
    "bin",
    "bz",
    "conda",
    "deb",
    "exe",
    "gguf",
    "gz",
    "img",
    "iso",
    "jar",
    "js",
    "json",
    "md",
    "onnx",
    "pom",
    "pt",
    "py",
    "rpm",
    "safetensors",
    "sh",
    "so",
    "tar",
    "tgz",
    "whl",
    "xml",
    "xz",
    "zip",
];

/// Deepest nesting that is looked into; the parser has such a limit too.
const DEPTH_MAX: usize = 64;

/// The hosts that `regex` names; none if it does not parse.
#[must_use]
pub fn named_hosts(regex: &str) -> Vec<HostPattern> {
    let Ok(parsed) = regex_syntax::parse(regex) else {
        return Vec::new();
    };
    let mut text = String::from(GAP);
    write_literals(&parsed, &mut text, 0);
    let mut hosts = Vec::new();
    for literal in text.split(GAP) {
        for host in hosts_in(literal) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    hosts
}

fn write_literals(hir: &Hir, text: &mut String, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => text.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(class) if is_any(class) => text.push('.'),
        HirKind::Class(_) => text.push(GAP),
        HirKind::Repetition(_) => text.push(GAP),
        HirKind::Capture(capture) => write_literals(&capture.sub, text, depth + 1),
        HirKind::Concat(parts) => {
            for part in parts {
                write_literals(part, text, depth + 1);
            }
        }
        HirKind::Alternation(parts) => {
            text.push(GAP);
            for part in parts {
                write_literals(part, text, depth + 1);
                text.push(GAP);
            }
        }
    }
}

/// Whether it is `.`, or nearly so.
fn is_any(class: &Class) -> bool {
    match class {
        Class::Unicode(class) => {
            let ranges = class.ranges();
            ranges
                .iter()
                .any(|range| range.start() <= '.' && '.' <= range.end())
                && ranges.iter().any(|range| range.end() > '\u{ffff}')
        }
        Class::Bytes(class) => class.ranges().iter().any(|range| range.end() == 0xff),
    }
}

fn hosts_in(literal: &str) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let mut at = 0;
    while at < literal.len() {
        let rest = &literal[at..];
        let Some(offset) = rest.find(is_of_name) else {
            break;
        };
        let start = at + offset;
        let len = literal[start..]
            .find(|c| !is_of_name(c))
            .unwrap_or(literal.len() - start);
        let end = start + len;
        at = end;
        hosts.extend(patterns(
            &literal[..start],
            &literal[start..end],
            &literal[end..],
        ));
    }
    hosts
}

/// What a word means as a host, between what stands before and behind it.
fn patterns(before: &str, word: &str, behind: &str) -> Vec<HostPattern> {
    let word = word.trim_end_matches('.').to_ascii_lowercase();
    let name = word.trim_start_matches('.');
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.contains('.')
        && name.split('.').all(|label| !label.is_empty())
        && ((last.len() >= 2 && last.bytes().all(|b| b.is_ascii_alphabetic()))
            || name.parse::<std::net::Ipv4Addr>().is_ok());
    let behind_scheme = before.ends_with("//");
    let before_path = behind.starts_with(['/', ':']) && !before.ends_with('/');
    let begins = before.is_empty() && !FILE_ENDINGS.contains(&last);
    if !is_name || !(behind_scheme || before_path || begins) {
        return Vec::new();
    }
    // Where the expression does not say what stands in front, names below are meant as well.
    let exactly = !word.starts_with('.');
    let below = !behind_scheme && name.parse::<std::net::Ipv4Addr>().is_err();
    let exactly = exactly.then(|| name.to_owned());
    let below = below.then(|| format!("*.{name}"));
    { exactly.into_iter().chain(below) }
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_expressions() {
        for (regex, hosts) in [
            (r"https://cdn-lfs\.hf\.co/repos.*", "cdn-lfs.hf.co"),
            (r"^https?://huggingface\.co/", "huggingface.co"),
            (
                r"files.pythonhosted.org.*\.whl",
                "files.pythonhosted.org *.files.pythonhosted.org",
            ),
            (r".*\.amazonaws\.com.*", "*.amazonaws.com"),
            (
                r"(github-cloud\.githubusercontent\.com|objects\.githubusercontent\.com)/",
                "github-cloud.githubusercontent.com *.github-cloud.githubusercontent.com objects.githubusercontent.com *.objects.githubusercontent.com",
            ),
            (r"https://10\.0\.0\.1:5000/", "10.0.0.1"),
            (r"https://HUB\.example\.com", "hub.example.com"),
        ] {
            let found: Vec<String> = named_hosts(regex).iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), hosts, "{regex}");
        }
    }

    #[test]
    fn expressions_for_any_host_name_none() {
        for regex in [
            ".*",
            "",
            r"blobs/sha256.*",
            r"manifests/sha256:[0-9a-f]{64}$",
            r".*\.tar\.gz",
            r"model\.safetensors$",
            r"/resolve/main/config\.json",
            r"https://[a-z]+\.internal",
            r".*amazonaws.*",
            "(",
        ] {
            assert_eq!(named_hosts(regex), [], "{regex}");
        }
    }
}
