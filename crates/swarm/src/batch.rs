//! Small messages gathered for a moment, so that a frame carries several.

use std::time::Duration;

/// Items that wait for a common departure.
///
/// The first item sets the departure; later ones travel with it. Announcements lose nothing by 5 to
/// 10 ms, and a busy host sends a tenth of the frames. The caller bounds what it pushes (a task has a
/// bounded number of segments); nothing is dropped here.
#[derive(Debug)]
pub struct Batch<T> {
    items: Vec<T>,
    hold: Duration,
    departure: Option<Duration>,
}

impl<T> Batch<T> {
    /// An empty batch that leaves `hold` after its first item.
    pub fn new(hold: Duration) -> Self {
        Self {
            items: Vec::new(),
            hold,
            departure: None,
        }
    }

    /// Adds an item.
    pub fn push(&mut self, now: Duration, item: T) {
        self.departure.get_or_insert(now + self.hold);
        self.items.push(item);
    }

    /// When [`Batch::take`] will give something.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.departure
    }

    /// Everything gathered, when its time has come; else nothing.
    pub fn take(&mut self, now: Duration) -> Option<Vec<T>> {
        self.departure.take_if(|departure| *departure <= now)?;
        Some(std::mem::take(&mut self.items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_item_sets_the_departure() {
        let ms = Duration::from_millis;
        let mut batch = Batch::new(ms(5));
        batch.push(ms(10), 'a');
        batch.push(ms(14), 'b');
        assert_eq!(batch.next_deadline(), Some(ms(15)));
        assert_eq!(batch.take(ms(14)), None);
        assert_eq!(batch.take(ms(15)), Some(vec!['a', 'b']));
        assert_eq!((batch.take(ms(99)), batch.next_deadline()), (None, None));
    }
}
