//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1): what a registry wants to see.

/// Longest header that is looked at, bytes.
const HEADER_LEN_MAX: usize = 8 << 10;
/// Most challenges, and most parameters of one.
const CHALLENGES_MAX: usize = 16;
const PARAMS_MAX: usize = 32;

/// One way to prove who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub scheme: String,
    /// Names in lower case, in the order of the header.
    params: Vec<(String, String)>,
}

/// The header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// Too long, or too much in it.
    #[error("it is longer than any registry needs")]
    TooLong,
    /// Not the grammar of the header.
    #[error("it is malformed at byte {at}")]
    Malformed {
        /// Where.
        at: usize,
    },
}

impl Challenge {
    /// All challenges of a header; several headers are joined by commas.
    ///
    /// # Errors
    /// [`ChallengeError`].
    pub fn parse(header: &str) -> Result<Vec<Self>, ChallengeError> {
        if header.len() > HEADER_LEN_MAX {
            return Err(ChallengeError::TooLong);
        }
        Scanner {
            text: header,
            at: 0,
        }
        .challenges()
    }

    /// The parameter of this name, if it is there. Of two, the first counts.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn challenges(mut self) -> Result<Vec<Challenge>, ChallengeError> {
        let mut found: Vec<Challenge> = Vec::new();
        loop {
            self.skip(b", \t");
            if self.peek().is_none() {
                return Ok(found);
            }
            let word = self.token()?;
            let spaces = self.skip(b" \t");
            match (self.peek(), found.last_mut()) {
                // `name = value` belongs to the challenge before it.
                (Some(b'='), Some(challenge)) => {
                    self.at += 1;
                    self.skip(b" \t");
                    let value = self.value()?;
                    if challenge.params.len() == PARAMS_MAX {
                        return Err(ChallengeError::TooLong);
                    }
                    challenge.params.push((word.to_ascii_lowercase(), value));
                }
                (Some(b'='), None) => return Err(self.malformed()),
                _ => {
                    if found.len() == CHALLENGES_MAX {
                        return Err(ChallengeError::TooLong);
                    }
                    found.push(Challenge {
                        scheme: word.to_ascii_lowercase(),
                        params: Vec::new(),
                    });
                    if spaces > 0 {
                        self.skip_token68();
                    }
                    continue;
                }
            }
            self.skip(b" \t");
            if !matches!(self.peek(), None | Some(b',')) {
                return Err(self.malformed());
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips bytes of this set; how many.
    fn skip(&mut self, set: &[u8]) -> usize {
        let from = self.at;
        while self.peek().is_some_and(|byte| set.contains(&byte)) {
            self.at += 1;
        }
        self.at - from
    }

    fn token(&mut self) -> Result<String, ChallengeError> {
        let from = self.at;
        while self.peek().is_some_and(is_token) {
            self.at += 1;
        }
        if from == self.at {
            return Err(self.malformed());
        }
        Ok(self.text[from..self.at].to_owned())
    }

    fn value(&mut self) -> Result<String, ChallengeError> {
        if self.peek() != Some(b'"') {
            return self.token();
        }
        self.at += 1;
        let mut value = String::new();
        loop {
            let rest = &self.text[self.at..];
            let mut chars = rest.chars();
            let taken = match chars.next() {
                None => return Err(self.malformed()),
                Some('"') => {
                    self.at += 1;
                    return Ok(value);
                }
                Some('\\') => chars.next().ok_or_else(|| self.malformed())?,
                Some(other) => other,
            };
            value.push(taken);
            self.at = self.text.len() - chars.as_str().len();
        }
    }

    /// What some schemes have instead of parameters: one word that ends with the challenge. Nobody asks for it here.
    fn skip_token68(&mut self) {
        let from = self.at;
        while self
            .peek()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
        {
            self.at += 1;
        }
        let word = self.at > from;
        self.skip(b"=");
        let end = self.at;
        self.skip(b" \t");
        if word && matches!(self.peek(), None | Some(b',')) {
            self.at = end;
        } else {
            self.at = from;
        }
    }

    fn malformed(&self) -> ChallengeError {
        ChallengeError::Malformed { at: self.at }
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Expected<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];

    fn check(header: &str, expected: Expected<'_>) {
        let found = Challenge::parse(header).unwrap();
        let expected: Vec<Challenge> = expected
            .iter()
            .map(|(scheme, params)| Challenge {
                scheme: (*scheme).to_owned(),
                params: params
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            })
            .collect();
        assert_eq!(found, expected, "{header}");
    }

    #[test]
    fn what_registries_send_is_read() {
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#,
            &[(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:library/nginx:pull,push"),
                ],
            )],
        );
        check(
            r#"Basic realm="a \"b\"""#,
            &[("basic", &[("realm", "a \"b\"")])],
        );
        check("Basic", &[("basic", &[])]);
        check("", &[]);
    }

    #[test]
    fn several_challenges_are_told_apart() {
        check(
            r#"Negotiate, NTLM abc==, BEARER Realm=x , error = "y",Basic realm="z""#,
            &[
                ("negotiate", &[]),
                ("ntlm", &[]),
                ("bearer", &[("realm", "x"), ("error", "y")]),
                ("basic", &[("realm", "z")]),
            ],
        );
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for header in [
            "realm=x",
            "=",
            r#"Bearer realm="x"#,
            r#"Bearer realm="x\"#,
            r#"Bearer realm="x" service="y""#,
            "Bearer ü=x",
        ] {
            assert!(Challenge::parse(header).is_err(), "{header}");
        }
        let long = format!("Bearer realm=\"{}\"", "x".repeat(HEADER_LEN_MAX));
        assert_eq!(Challenge::parse(&long), Err(ChallengeError::TooLong));
        assert_eq!(
            Challenge::parse(&"a,".repeat(17)),
            Err(ChallengeError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn parameters_come_back(params in prop::collection::vec(("[a-z]{1,8}", "[ -~]{0,20}"), 0..8)) {
            let quoted: Vec<String> = params
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
                .collect();
            let parsed = Challenge::parse(&format!("Bearer {}", quoted.join(", "))).unwrap();
            prop_assert_eq!(&parsed[0].params, &params);
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,200}") {
            let _ = Challenge::parse(&text);
        }
    }
}
