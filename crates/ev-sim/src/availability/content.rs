//! What a guest's memory or a disk contains: a point on a line of history that branches where a guest goes on from something older.

/// A point: all that was done on this branch up to a time, and all that the branch came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    branch: usize,
    at_ms: u64,
}

impl Content {
    /// The same branch, later.
    pub(super) fn at(self, at_ms: u64) -> Self {
        Self { at_ms: self.at_ms.max(at_ms), ..self }
    }
}

/// Where each branch came from; `None`: from nothing.
#[derive(Debug, Default)]
pub(super) struct Branches(Vec<Option<Content>>);

impl Branches {
    /// A new branch.
    pub(super) fn fork(&mut self, from: Option<Content>, at_ms: u64) -> Content {
        self.0.push(from);
        Content { branch: self.0.len() - 1, at_ms }
    }

    /// Whether all of `part` is in `whole`.
    pub(super) fn contain(&self, whole: Content, part: Content) -> bool {
        let mut point = Some(whole);
        while let Some(at) = point {
            if at.branch == part.branch {
                return part.at_ms <= at.at_ms;
            }
            point = self.0[at.branch];
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_after_the_fork_is_not_contained() {
        let mut branches = Branches::default();
        let first = branches.fork(None, 0).at(10);
        let second = branches.fork(Some(first), 20).at(30);
        assert!(branches.contain(second, first));
        assert!(!branches.contain(second, first.at(11)));
        assert!(!branches.contain(first.at(50), second));
        let other = branches.fork(None, 40);
        assert!(!branches.contain(other, first));
    }
}
