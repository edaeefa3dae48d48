//! Whatever a listing holds, what comes out of it lies below the output folder, and patterns never panic.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use protocol::{EntryFilter, EntryPath, EntryPlan};

fuzz_target!(|input: (&str, Vec<(&str, bool)>, Vec<&str>, Vec<&str>)| {
    let (base, entries, include, exclude) = input;
    let filter =
        EntryFilter::new(&include, &exclude).unwrap_or_else(|_| EntryFilter::everything());
    // Once as they are and once hung below the base, which random texts seldom are by themselves.
    let hung: Vec<(String, bool)> = entries
        .iter()
        .map(|(entry, is_dir)| (format!("s3://b/{base}/{entry}"), *is_dir))
        .collect();
    let hung = hung.iter().map(|(entry, is_dir)| (entry.as_str(), *is_dir));
    let below = EntryPlan::new(&format!("s3://b/{base}/"), hung, &filter);
    for plan in [EntryPlan::new(base, entries.iter().copied(), &filter), below]
        .into_iter()
        .flatten()
    {
        for path in plan.directories.iter().chain(plan.files.iter().map(|(path, _)| path)) {
            is_inside(path);
        }
    }
});

fn is_inside(path: &EntryPath) {
    let path: &Path = path.as_ref();
    assert!(path.components().count() > 0);
    assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
}
