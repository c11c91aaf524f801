//! A trouble that stays: the log tells of it once, and of its end.

/// What the log knows of a trouble.
#[derive(Debug, Default)]
pub(super) struct Standing(Option<String>);

impl Standing {
    /// The trouble is there, for this reason. Whether that is to be told: it was not, or for another reason.
    pub(super) fn is_news(&mut self, reason: String) -> bool {
        let news = self.0.as_ref() != Some(&reason);
        self.0 = Some(reason);
        news
    }

    /// It is not there. Whether that is to be told: it was.
    pub(super) fn ends(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_once_with_its_end() {
        let mut standing = Standing::default();
        assert!(!standing.ends(), "nothing began");
        assert!(standing.is_news("full".into()), "the first time");
        assert!(!standing.is_news("full".into()), "at every pass");
        assert!(standing.is_news("the kernel refuses".into()), "another reason");
        assert!(standing.ends(), "its end");
        assert!(!standing.ends(), "once");
        assert!(standing.is_news("full".into()), "again");
    }
}
