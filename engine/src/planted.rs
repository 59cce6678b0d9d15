//! Defects that tests plant in the code, to see that their checkers find them.
//!
//! They exist with the feature `planted` alone, which only tests ask for. Without it, `is_planted` is false and leaves
//! no code behind. A defect is planted for one thread.

#[cfg(feature = "planted")]
mod switch {
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Plants `defect` on this thread, in place of any other.
    pub fn plant(defect: Option<&'static str>) {
        PLANTED.set(defect);
    }

    /// Whether `defect` is planted on this thread.
    pub fn is_planted(defect: &str) -> bool {
        PLANTED.get() == Some(defect)
    }
}

/// Whether `defect` is planted on this thread: never, in this build.
#[cfg(not(feature = "planted"))]
pub const fn is_planted(_defect: &str) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use switch::{is_planted, plant};
