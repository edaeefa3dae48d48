//! Any task id is refused or safe as a file name; any download request has an id or a reason why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{PieceNumber, StandardTask, TaskId};

fuzz_target!(|input: (&str, &str, Option<&str>, Option<u64>)| {
    let (text, url, tag, piece_length) = input;
    if let Ok(id) = TaskId::try_from(text) {
        assert_eq!(id.as_str(), text);
        assert!((3..=128).contains(&text.len()) && !text.contains(['/', '\0']));
        assert!(text.starts_with(id.prefix()));
        assert!(id.piece_id(PieceNumber(0)).starts_with(text));
    }
    let task = StandardTask {
        url,
        tag,
        piece_length,
        blob_digest: true,
        ..StandardTask::default()
    };
    if let Ok(id) = task.task_id() {
        assert!(TaskId::try_from(id.as_str()).is_ok());
    }
});
