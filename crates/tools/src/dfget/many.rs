//! Many files into one folder, several at a time over one connection.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use tonic::transport::Channel;

use super::arguments::Arguments;
use super::destination::Destination;
use super::file::File;
use super::plan::{self, PlannedFile};
use super::progress::{Board, Progress};
use super::report::{FileOutcome, FolderSummary, Summary};
use crate::failure::Failure;
use crate::program::Told;

/// Pauses before a busy daemon is asked again; the last one counts on. It takes hundreds of requests a second, so that a moment is enough.
const BUSY_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// Downloads everything that `arguments` name into their folder.
pub(super) async fn run(arguments: &Arguments, deadline: Instant) -> Result<Told, Failure> {
    plan::check(arguments)?;
    let begin = Instant::now();
    let folder = std::path::absolute(&arguments.output)
        .map_err(|error| Failure::output(&arguments.output, &error))?;
    let channel = arguments.daemon.connect().await?;
    let plan = plan::plan(arguments, &channel, &folder, deadline).await?;
    plan.make_directories(&folder)?;
    let board = Board::new(arguments, plan.files.len());
    let outcomes = {
        let downloads = download(arguments, &channel, &plan.files, deadline, &board);
        tokio::select! {
            outcomes = downloads => outcomes,
            never = board.draw() => match never {},
        }
    };
    drop(board);
    let mut summary = FolderSummary::new(
        folder.display().to_string(),
        plan.directories.len(),
        outcomes,
        begin.elapsed(),
    );
    summary.note = Some(plan.notes.join("; ")).filter(|note| !note.is_empty());
    let exit_code = u8::from(!summary.is_whole());
    Ok(Told::with_exit_code(&summary, exit_code))
}

/// The outcomes in the order of the files.
async fn download(
    arguments: &Arguments,
    channel: &Channel,
    files: &[PlannedFile],
    deadline: Instant,
    board: &Board,
) -> Vec<FileOutcome> {
    let give_up = Cell::new(false);
    let give_up = &give_up;
    let downloads = files
        .iter()
        .enumerate()
        .map(|(number, planned)| async move {
            if give_up.get() {
                return (number, FileOutcome::skipped(planned));
            }
            board.start(number, &planned.name);
            let progress = Progress::Among(board, number);
            let file = File {
                url: &planned.url,
                output: &planned.output,
                length: planned.length,
                deadline,
            };
            let outcome = one(arguments, channel, file, &progress).await;
            board.finish(number, outcome.is_err());
            give_up.set(give_up.get() || (outcome.is_err() && arguments.fail_fast));
            (number, FileOutcome::new(planned, outcome))
        });
    let at_once = usize::from(arguments.max_concurrent_requests);
    let mut outcomes: Vec<_> = stream::iter(downloads)
        .buffer_unordered(at_once)
        .collect()
        .await;
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// One file, and again after a while as long as the daemon is too busy.
async fn one(
    arguments: &Arguments,
    channel: &Channel,
    file: File<'_>,
    progress: &Progress<'_>,
) -> Result<Summary, Failure> {
    let destination = Destination::in_folder(arguments, file.output)?;
    let mut pauses = BUSY_PAUSES.into_iter();
    let mut pause = Duration::ZERO;
    loop {
        let outcome = file
            .download(arguments, channel, &destination, progress)
            .await;
        pause = pauses.next().unwrap_or(pause);
        match outcome {
            Err(failure) if failure.is_busy() && Instant::now() + pause < file.deadline => {
                tokio::time::sleep(pause).await;
            }
            outcome => return outcome,
        }
    }
}
