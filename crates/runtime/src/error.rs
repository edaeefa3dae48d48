//! Telling an error with its causes.

use std::error::Error;

/// `error` and its causes in one line, outermost first. A cause that an outer text has already said is left out: some error
/// types of libraries repeat their cause, others (those of gRPC) hide it.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Example {
        #[error("outer")]
        Hides(#[source] std::io::Error),
        #[error("outer: {0}")]
        Repeats(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_said_once() {
        let io = || std::io::Error::other("inner");
        assert_eq!(told(&Example::Hides(io())), "outer: inner");
        assert_eq!(told(&Example::Repeats(io())), "outer: inner");
    }
}
