//! Which URLs go into the swarm, and how.

use std::sync::Arc;

use http::uri::Authority;
use regex::Regex;
use url::Url;

use crate::config::ProxyRule;

/// What one of `proxy.rules` says of the URLs that it matches.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `regex`; `None` in the rule of requests that ask for the swarm by header.
    regex: Option<Regex>,
    /// `useTLS`: the origin is asked over https.
    pub use_tls: bool,
    /// `redirect`: `host` or `host:port` that is asked instead.
    pub redirect: Option<String>,
    /// `filteredQueryParams`: query parameters that are no part of the task's identity.
    pub filtered_query_params: Vec<String>,
    /// `schedulingPolicy: always`: small files go through the scheduler too.
    pub always_schedule: bool,
}

impl Default for Rule {
    /// The rule of requests that ask for the swarm by header.
    fn default() -> Self {
        Self {
            regex: None,
            use_tls: false,
            redirect: None,
            filtered_query_params: protocol::DEFAULT_FILTERED_QUERY_PARAMS
                .map(str::to_owned)
                .to_vec(),
            always_schedule: false,
        }
    }
}

impl Rule {
    /// The URL that the origin is asked for, if this rule holds for `url`: `useTLS` and `redirect` applied.
    ///
    /// `None` if `redirect` is no host with an optional port.
    #[must_use]
    pub fn origin(&self, url: &Url) -> Option<Url> {
        let mut origin = url.clone();
        if self.use_tls {
            origin.set_scheme("https").ok()?;
        }
        if let Some(authority) = &self.redirect {
            let authority: Authority = authority.parse().ok()?;
            let port = authority.port_u16();
            if authority.as_str().contains('@') || (port.is_none() && authority.port().is_some()) {
                return None;
            }
            origin.set_host(Some(authority.host())).ok()?;
            origin.set_port(port).ok()?;
        }
        Some(origin)
    }

    fn matches(&self, bare_url: &str) -> bool {
        self.regex
            .as_ref()
            .is_some_and(|regex| regex.is_match(bare_url))
    }
}

/// `proxy.rules` in order.
#[derive(Debug, Clone)]
pub struct Rules {
    rules: Vec<Arc<Rule>>,
    by_header: Arc<Rule>,
}

impl Rules {
    /// As configured. An expression that does not compile was refused with the configuration, and matches nothing here.
    #[must_use]
    pub fn new(configured: &[ProxyRule]) -> Self {
        let rule = |written: &ProxyRule| {
            Some(Arc::new(Rule {
                regex: Some(Regex::new(&written.regex).ok()?),
                use_tls: written.use_tls,
                redirect: written.redirect.clone(),
                filtered_query_params: written.filtered_query_params.clone(),
                always_schedule: written.always_schedule,
            }))
        };
        Self {
            rules: configured.iter().filter_map(rule).collect(),
            by_header: Arc::new(Rule::default()),
        }
    }

    /// The first rule whose expression is found in `url` without its query and fragment.
    #[must_use]
    pub fn find(&self, url: &Url) -> Option<Arc<Rule>> {
        let bare = &url[..url::Position::AfterPath];
        self.rules.iter().find(|rule| rule.matches(bare)).cloned()
    }

    /// The rule of requests that ask for the swarm by header.
    #[must_use]
    pub fn by_header(&self) -> Arc<Rule> {
        self.by_header.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(regex: &str) -> ProxyRule {
        ProxyRule {
            regex: regex.to_owned(),
            use_tls: false,
            redirect: None,
            filtered_query_params: vec![],
            always_schedule: false,
        }
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_first_match_wins_and_sees_neither_query_nor_default_port() {
        let second = ProxyRule {
            always_schedule: true,
            ..rule("^https://h/")
        };
        let rules = Rules::new(&[rule("blobs/sha256"), second]);
        let find = |text| rules.find(&url(text)).map(|rule| rule.always_schedule);
        assert_eq!(find("https://h:443/v2/a/blobs/sha256:1"), Some(false));
        assert_eq!(find("https://H:443/x"), Some(true));
        assert_eq!(find("http://h/x?blobs/sha256"), None);
        assert_eq!(find("http://h/x#blobs/sha256"), None);
        assert!(Rules::new(&[]).find(&url("http://h/")).is_none());
    }

    #[test]
    fn a_rule_moves_the_origin() {
        let moved = |use_tls, redirect: Option<&str>, text| {
            let rule = Rule {
                use_tls,
                redirect: redirect.map(str::to_owned),
                ..Rule::default()
            };
            rule.origin(&url(text)).map(String::from)
        };
        assert_eq!(
            moved(true, None, "http://h/p?q=1").unwrap(),
            "https://h/p?q=1"
        );
        assert_eq!(
            moved(false, Some("o:81"), "http://h:8/p?q").unwrap(),
            "http://o:81/p?q"
        );
        assert_eq!(
            moved(true, Some("o"), "http://h:8/p").unwrap(),
            "https://o/p"
        );
        assert_eq!(
            moved(false, Some("[::1]:5"), "http://h/").unwrap(),
            "http://[::1]:5/"
        );
        assert_eq!(moved(false, Some("http://o"), "http://h/"), None);
        assert_eq!(moved(false, Some("a b"), "http://h/"), None);
    }
}
