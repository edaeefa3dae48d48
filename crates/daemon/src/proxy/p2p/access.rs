//! Who may have what is held here.
//!
//! A content is never given out merely because its digest or URL is known. It is public (its origin gives it to anybody), or the
//! client's own credentials were accepted for it by the origin. The origin's word counts for a minute; while the origin is away it
//! counts for a day. Credentials are kept as a keyed hash, together with what they were accepted for, never as they are.
//!
//! Pure but for the key: time comes in as an argument.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// How long an origin's word is good while the origin could be asked.
const FRESH: Duration = Duration::from_secs(60);
/// How long it is good while the origin is away.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Accepted claims that are remembered, some 50 bytes each; the oldest go first.
const ACCEPTED_MAX: usize = 32_768;
/// How long an origin that did not answer is not asked again.
const AWAY: Duration = Duration::from_secs(3);
/// Origins that are known to be away; more are simply asked.
const AWAY_MAX: usize = 1024;

/// A client's wish: these credentials for this content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim([u8; 16]);

/// See the module.
#[derive(Debug)]
pub struct Access {
    key: [u8; 32],
    accepted: HashMap<Claim, Instant>,
    order: VecDeque<(Claim, Instant)>,
    away: HashMap<String, Instant>,
}

impl Access {
    /// Nothing accepted yet; `key` must be random.
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            accepted: HashMap::new(),
            order: VecDeque::new(),
            away: HashMap::new(),
        }
    }

    /// `what` names the content at its origin, `credentials` are what the client shows, in any fixed order.
    pub fn claim<'a>(
        &self,
        what: &str,
        credentials: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Claim {
        let mut hasher = Sha256::new_with_prefix(self.key);
        let mut add = |part: &[u8]| {
            // Lengths keep two parts from being taken for two others.
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        add(what.as_bytes());
        for (name, value) in credentials {
            add(name.as_bytes());
            add(value);
        }
        let hash = hasher.finalize();
        let mut claim = [0; 16];
        claim.copy_from_slice(&hash[..16]);
        Claim(claim)
    }

    /// The origin has accepted this.
    pub fn accept(&mut self, claim: Claim, now: Instant) {
        self.accepted.insert(claim, now);
        self.order.push_back((claim, now));
        // An entry that was renewed stands in the queue twice; the older one goes without taking the newer along.
        while self.accepted.len() > ACCEPTED_MAX || self.order.len() > 2 * ACCEPTED_MAX {
            let Some((oldest, at)) = self.order.pop_front() else {
                return;
            };
            if self.accepted.get(&oldest) == Some(&at) {
                self.accepted.remove(&oldest);
            }
        }
    }

    /// The origin has refused this: an earlier word no longer counts.
    pub fn refuse(&mut self, claim: Claim) {
        self.accepted.remove(&claim);
    }

    /// Whether the origin needs not be asked.
    pub fn is_fresh(&self, claim: Claim, now: Instant) -> bool {
        self.accepted_within(claim, FRESH, now)
    }

    /// Whether it was accepted lately enough for the time that the origin is away.
    pub fn is_remembered(&self, claim: Claim, now: Instant) -> bool {
        self.accepted_within(claim, REMEMBERED, now)
    }

    fn accepted_within(&self, claim: Claim, within: Duration, now: Instant) -> bool {
        self.accepted
            .get(&claim)
            .is_some_and(|at| now.saturating_duration_since(*at) < within)
    }

    /// The origin did not answer.
    pub fn gone_away(&mut self, authority: &str, now: Instant) {
        if self.away.len() >= AWAY_MAX {
            self.away
                .retain(|_, since| now.saturating_duration_since(*since) < AWAY);
        }
        if self.away.len() < AWAY_MAX {
            self.away.insert(authority.to_owned(), now);
        }
    }

    /// The origin answers.
    pub fn is_back(&mut self, authority: &str) {
        self.away.remove(authority);
    }

    /// Whether the origin did not answer a moment ago.
    pub fn is_away(&self, authority: &str, now: Instant) -> bool {
        self.away
            .get(authority)
            .is_some_and(|since| now.saturating_duration_since(*since) < AWAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(access: &Access, what: &str, credentials: &[(&str, &str)]) -> Claim {
        access.claim(
            what,
            credentials
                .iter()
                .map(|(name, value)| (*name, value.as_bytes())),
        )
    }

    #[test]
    fn the_origins_word_ages() {
        let mut access = Access::new([7; 32]);
        let start = Instant::now();
        let mine = claim(&access, "r/a@d", &[("authorization", "Basic x")]);
        let other = claim(&access, "r/a@d", &[("authorization", "Basic y")]);
        let elsewhere = claim(&access, "r/b@d", &[("authorization", "Basic x")]);
        access.accept(mine, start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(access.is_fresh(mine, later(59)) && !access.is_fresh(mine, later(60)));
        assert!(access.is_remembered(mine, later(86_399)));
        assert!(!access.is_remembered(mine, later(86_400)));
        for stranger in [other, elsewhere] {
            assert!(!access.is_remembered(stranger, start));
        }
        access.refuse(mine);
        assert!(!access.is_remembered(mine, start));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let mut access = Access::new([7; 32]);
        let start = Instant::now();
        let nth = |access: &Access, n: usize| claim(access, &n.to_string(), &[]);
        let first = nth(&access, 0);
        for n in 0..ACCEPTED_MAX {
            let claim = nth(&access, n);
            access.accept(claim, start);
        }
        access.accept(first, start + Duration::from_secs(1));
        for n in ACCEPTED_MAX..ACCEPTED_MAX + 10 {
            let claim = nth(&access, n);
            access.accept(claim, start);
        }
        assert!(access.accepted.len() <= ACCEPTED_MAX);
        assert!(access.is_fresh(first, start), "it was renewed");
        assert!(!access.is_fresh(nth(&access, 1), start));
        for _ in 0..3 * ACCEPTED_MAX {
            access.accept(first, start);
        }
        assert!(access.order.len() <= 2 * ACCEPTED_MAX);
    }

    #[test]
    fn an_origin_that_is_away_is_asked_again_soon() {
        let mut access = Access::new([7; 32]);
        let start = Instant::now();
        access.gone_away("r:1", start);
        assert!(access.is_away("r:1", start) && !access.is_away("r:2", start));
        assert!(!access.is_away("r:1", start + AWAY));
        access.is_back("r:1");
        assert!(!access.is_away("r:1", start));
        for n in 0..2 * AWAY_MAX {
            access.gone_away(&n.to_string(), start);
        }
        assert!(access.away.len() <= AWAY_MAX);
    }

    proptest! {
        #[test]
        fn different_wishes_are_different_claims(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            let access = Access::new([1; 32]);
            let same = claim(&access, &a, &[("n", &b)]) == claim(&access, &c, &[("n", &d)]);
            prop_assert_eq!(same, a == c && b == d);
        }
    }
}
