//! How good a parent would be: Dragonfly v2's default evaluator (scheduler sheet, section 4.4).

use crate::model::Uploads;
use crate::states::PeerState;
use protocol::HostRole;

/// Bit/s that one concurrent piece is taken to need: 16 MiB/s.
const PIECE_BANDWIDTH: f64 = 16_777_216.0 * 8.0;

/// What is known of the host on one side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Site<'a> {
    /// Its data centre.
    pub idc: Option<&'a str>,
    /// Its place, broad to narrow, parts separated by `|`.
    pub location: Option<&'a str>,
}

/// What the score of a parent is made of.
#[derive(Debug, Clone, Copy)]
pub struct ParentFacts<'a> {
    /// Where its host stands.
    pub site: Site<'a>,
    /// What its host does for others.
    pub role: HostRole,
    /// Where the parent stands in the task.
    pub state: PeerState,
    /// The host's announced upload bandwidth, bit/s; 0 is unknown.
    pub max_tx_bandwidth: u64,
    /// What the scheduler has already put on the host.
    pub uploads: Uploads,
}

/// The score of `parent` for a child at `child`, from 0 to 1; higher is better.
pub fn score(child: Site<'_>, parent: &ParentFacts<'_>) -> f64 {
    let (idc, location) = (
        same_idc(child.idc, parent.site.idc),
        shared_location(child.location, parent.site.location),
    );
    0.6 * load(parent.max_tx_bandwidth, &parent.uploads)
        + 0.2 * idc
        + 0.1 * location
        + 0.1 * role(parent)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bandwidths and lengths far below 2^53 matter; ratios are compared"
)]
fn load(max_tx_bandwidth: u64, uploads: &Uploads) -> f64 {
    if max_tx_bandwidth == 0 {
        return 0.0;
    }
    let max = max_tx_bandwidth as f64;
    let peak = (1.0 - uploads.tx_bandwidth as f64 / max).max(0.0);
    let minutes = 8.0 * uploads.content_length as f64 / max / 60.0;
    let duration = (1.0 - minutes).max(0.0);
    let room = max / PIECE_BANDWIDTH;
    let concurrency = match uploads.concurrent_piece_count as f64 {
        _ if room <= 1.0 => 0.0,
        pieces if pieces <= room => 1.0,
        pieces => room / pieces,
    };
    0.5 * peak + 0.3 * duration + 0.2 * concurrency
}

fn same_idc(child: Option<&str>, parent: Option<&str>) -> f64 {
    match (child.unwrap_or_default(), parent.unwrap_or_default()) {
        ("", _) | (_, "") => 0.0,
        (child, parent) => f64::from(child.eq_ignore_ascii_case(parent)),
    }
}

/// Leading equal parts of at most five, always divided by five unless the whole text is equal.
fn shared_location(child: Option<&str>, parent: Option<&str>) -> f64 {
    const PARTS: u8 = 5;
    match (child.unwrap_or_default(), parent.unwrap_or_default()) {
        ("", _) | (_, "") => 0.0,
        (child, parent) if child.eq_ignore_ascii_case(parent) => 1.0,
        (child, parent) => {
            let pairs = child.split('|').zip(parent.split('|')).take(PARTS.into());
            let equal: f64 = pairs
                .take_while(|(one, other)| one.eq_ignore_ascii_case(other))
                .map(|_| 1.0)
                .sum();
            equal / f64::from(PARTS)
        }
    }
}

fn role(parent: &ParentFacts<'_>) -> f64 {
    match (parent.role, parent.state) {
        (HostRole::Normal, _) => 0.5,
        (HostRole::Seed, PeerState::ReceivedNormal | PeerState::Running) => 1.0,
        (HostRole::Seed, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB4: u64 = 4_294_967_296;

    fn uploads(tx_bandwidth: u64, content_length: u64, concurrent_piece_count: u64) -> Uploads {
        Uploads {
            tx_bandwidth,
            content_length,
            concurrent_piece_count,
            ..Uploads::default()
        }
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-5, "{got} instead of {expected}");
    }

    #[test]
    fn loads_of_the_sheet() {
        close(load(GIB4, &uploads(0, 8_589_934_592, 0)), 0.92);
        close(load(GIB4, &uploads(0, 0, 200)), 0.832);
        close(
            load(10_000_000_000, &uploads(268_435_456, 1_073_741_824, 8)),
            0.98228,
        );
        close(load(0, &uploads(0, 0, 0)), 0.0);
        close(load(GIB4, &uploads(GIB4 * 2, u64::MAX, u64::MAX)), 0.0);
    }

    #[test]
    fn scores_of_the_sheet() {
        let child = Site {
            idc: Some("IDC"),
            location: Some("a|b|c|d|e"),
        };
        let mut parent = ParentFacts {
            site: Site {
                idc: Some("idc"),
                location: Some("A|B|x|d|e"),
            },
            role: HostRole::Normal,
            state: PeerState::Running,
            max_tx_bandwidth: GIB4,
            uploads: uploads(500, 8_589_934_592, 2),
        };
        close(score(child, &parent), 0.842);
        parent.site.location = Some("a|b|c|d|e");
        parent.role = HostRole::Seed;
        parent.uploads = uploads(GIB4, 12_884_901_888, 16);
        close(score(child, &parent), 0.628);
    }

    #[test]
    fn places_are_compared_from_the_front_and_divided_by_five() {
        close(shared_location(Some("a|b"), Some("A|B")), 1.0);
        close(shared_location(Some("a|b"), Some("a|c")), 0.2);
        close(
            shared_location(Some("a|b|c|d|e|f"), Some("a|b|c|d|e|g")),
            1.0,
        );
        close(shared_location(Some("x|b"), Some("y|b")), 0.0);
        close(shared_location(None, Some("y")), 0.0);
        close(same_idc(Some(""), Some("")), 0.0);
    }
}
