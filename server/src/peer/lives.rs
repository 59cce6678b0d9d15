//! Runs on: raft core.
//!
//! The lives of another member's process, as far as its connections tell.
//!
//! Invariant: once something of a newer life has come, nothing of an older one is taken. Which life is newer follows
//! from the order in which connections were established: each has a number, and those of a later life have higher
//! ones. A member of etcd says nothing of its lives; all are one then.

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lives {
    /// The newest life, and the lowest number of a connection of it.
    newest: Option<(u64, u64)>,
}

/// What is to be made of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is of the newest life.
    Same,
    /// It is of a life that began just now: connections of others are to be closed.
    New,
    /// It is of a life that is over.
    Over,
}

impl Lives {
    /// Whether a connection with this number is of a life that counts.
    pub fn admit(&mut self, life: u64, number: u64) -> Admitted {
        match &mut self.newest {
            Some((newest, first)) if *newest == life => {
                *first = number.min(*first);
                Admitted::Same
            }
            Some((_, first)) if number < *first => Admitted::Over,
            newest => {
                *newest = Some((life, number));
                Admitted::New
            }
        }
    }

    /// The newest life; none before something has come.
    pub fn newest(&self) -> Option<u64> {
        self.newest.map(|(life, _)| life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_life_counts_behind_something_of_the_next_one() {
        let mut lives = Lives::default();
        let came = [(7, 3), (7, 5), (7, 2), (8, 6), (7, 4), (8, 9), (9, 12), (8, 11), (7, 1), (9, 10)];
        use Admitted::{New, Over, Same};
        let expected = [New, Same, Same, New, Over, Same, New, Over, Over, Same];
        let admitted = came.map(|(life, number)| lives.admit(life, number));
        assert_eq!(admitted, expected);
        assert_eq!(lives.newest(), Some(9));
    }
}
