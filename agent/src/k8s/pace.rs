//! When to ask again: how one request went decides how soon the next may come.

use std::time::Duration;

use super::backoff::Backoff;

/// A watch that lives longer and tells something was no failure, however it ended.
const LIVED: Duration = Duration::from_secs(5);

/// How a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    /// The server has begun to answer.
    pub(super) began: bool,
    /// What is known was shown to be what the server has: a list was complete, or a watch told something.
    pub(super) stood: bool,
    /// A change, or a bookmark, came after all that was there: changes do come. A list alone does not show that: a server
    /// that lists, and forgets at once from where to go on, would be asked for everything again and again.
    pub(super) moved: bool,
    /// A line was no event, and that has been told.
    pub(super) garbled: bool,
}

/// The waits between one kind's requests.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    backoff: Backoff,
}

impl Pace {
    pub(super) const fn new([first, last]: [Duration; 2]) -> Self {
        Self { backoff: Backoff::new(first, last) }
    }

    /// How long to wait after a request; not at all after a watch that did its work until the server ended it. Time alone is
    /// no progress: a server that lets all wait before it fails is one that fails.
    pub(super) fn after(
        &mut self,
        course: Course,
        lasted: Duration,
        failed: bool,
        asked: Option<Duration>,
    ) -> Duration {
        if course.moved && lasted >= LIVED {
            self.backoff.reset();
            if !failed {
                return Duration::ZERO;
            }
        }
        self.backoff.wait(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LAST: Duration = Duration::from_secs(30);

    #[test]
    fn only_progress_begins_the_waits_anew() {
        let moved = Course { began: true, stood: true, moved: true, garbled: false };
        let listed = Course { moved: false, ..moved };
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        // What is asked for, how it ended, and whether the wait after it is a first one, a late one, or none.
        let rows = [
            ("refused at once", Course::default(), short, true, LAST),
            ("refused after a long wait", Course::default(), long, true, LAST),
            ("begun, silent, and broken", Course { began: true, ..Course::default() }, long, true, LAST),
            ("ended without a word", Course { began: true, ..Course::default() }, long, false, LAST),
            ("listed, then forgotten", listed, short, true, LAST),
            ("listed slowly, then forgotten", listed, long, true, LAST),
            ("one bookmark, and broken at once", moved, short, true, LAST),
            ("one bookmark, and ended at once", moved, short, false, LAST),
            ("watched long, then failed", moved, long, true, FIRST),
            ("watched to its end", moved, long, false, Duration::ZERO),
        ];
        for (why, course, lasted, failed, most) in rows {
            let mut pace = Pace::new([FIRST, LAST]);
            for _ in 0..10 {
                pace.after(Course::default(), short, true, None);
            }
            let wait = pace.after(course, lasted, failed, None);
            assert!(wait >= most / 2 && wait <= most, "{why}: {wait:?}, and at most {most:?} is right");
        }
    }
}
