//! From URLs to the files of a folder.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::EntryPath;
use runtime::secret::redact_url;
use tonic::transport::Channel;
use url::Url;

use super::arguments::{Arguments, is_directory};
use super::listing;
use crate::failure::Failure;

/// What is made and downloaded below a folder.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The outer ones first.
    pub(super) directories: Vec<PathBuf>,
    pub(super) files: Vec<PlannedFile>,
    /// What the user should know although it is no failure.
    pub(super) notes: Vec<String>,
}

/// One file of a plan.
#[derive(Debug)]
pub(super) struct PlannedFile {
    pub(super) url: Url,
    pub(super) output: PathBuf,
    /// Below the folder, for people.
    pub(super) name: String,
    /// As the listing said.
    pub(super) length: Option<u64>,
}

/// Refuses what cannot go well, before anything is asked.
pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    let usage = |reason: &str| {
        Err(Failure::Usage {
            reason: reason.to_owned(),
        })
    };
    if arguments.output == Path::new("-") {
        return usage("several files cannot be written to standard output: name a folder with -O");
    }
    if arguments.content_for_calculating_task_id.is_some() {
        return usage(
            "--content-for-calculating-task-id would give all files of a folder one task: leave it out",
        );
    }
    if arguments.digest.is_some() {
        return usage("--digest is that of one file: leave it out for several");
    }
    Ok(())
}

/// Plans what `arguments` name; lists the directories among them.
pub(super) async fn plan(
    arguments: &Arguments,
    channel: &Channel,
    folder: &Path,
    deadline: Instant,
) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    for url in &arguments.urls {
        if !arguments.recursive && !is_directory(url) {
            let name = own_name(url)?;
            plan.add(url.clone(), folder, &name, None);
            continue;
        }
        let directory = directory(url);
        // Each directory of several gets a folder of its own.
        let below = match arguments.urls.len() {
            1 => folder.to_owned(),
            _ => {
                let below = folder.join(own_name(&directory)?);
                plan.directories.push(below.clone());
                below
            }
        };
        let listed = listing::list(arguments, channel, &directory, deadline).await?;
        plan.notes.extend(listed.note);
        let made = listed.plan.directories.iter();
        plan.directories.extend(made.map(|path| below.join(path)));
        for (path, url) in &listed.plan.files {
            let length = listed.lengths.get(url.as_str()).copied();
            let url = url.parse().map_err(|error| Failure::Refused {
                reason: format!(
                    "the listing of {} names {:?}, which is no URL: {error}",
                    redact_url(directory.as_str()),
                    redact_url(url)
                ),
            })?;
            plan.add(url, &below, path, length);
        }
    }
    plan.without_doubles()
}

impl Plan {
    fn add(&mut self, url: Url, below: &Path, path: &EntryPath, length: Option<u64>) {
        self.files.push(PlannedFile {
            url,
            output: below.join(path),
            name: path.to_string(),
            length,
        });
    }

    fn without_doubles(self) -> Result<Self, Failure> {
        let mut seen: BTreeMap<&Path, &Url> = BTreeMap::new();
        for file in &self.files {
            if let Some(other) = seen.insert(&file.output, &file.url) {
                return Err(Failure::Usage {
                    reason: format!(
                        "{} and {} would both become {}: download one of them alone",
                        redact_url(other.as_str()),
                        redact_url(file.url.as_str()),
                        file.output.display()
                    ),
                });
            }
        }
        Ok(self)
    }

    /// Makes the folder and the directories in it. A symbolic link in place of one would lead elsewhere and is refused.
    pub(super) fn make_directories(&self, folder: &Path) -> Result<(), Failure> {
        make(folder, Existing::MayBeLink)?;
        for directory in &self.directories {
            make(directory, Existing::MustBeDirectory)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// The user named it.
    MayBeLink,
    /// A listing named it.
    MustBeDirectory,
}

fn make(directory: &Path, existing: Existing) -> Result<(), Failure> {
    match std::fs::create_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = match existing {
                Existing::MayBeLink => std::fs::metadata(directory),
                Existing::MustBeDirectory => std::fs::symlink_metadata(directory),
            };
            match there {
                Ok(there) if there.is_dir() => Ok(()),
                Ok(_) => Err(Failure::Output {
                    path: directory.to_owned(),
                    reason: "something that is no directory is in its place: remove it".to_owned(),
                }),
                Err(error) => Err(Failure::output(directory, &error)),
            }
        }
        Err(error) => Err(Failure::output(directory, &error)),
    }
}

/// The URL with `/` at its end.
fn directory(url: &Url) -> Url {
    let mut url = url.clone();
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    url
}

/// The last part of a URL's path, as a name that a file can have.
fn own_name(url: &Url) -> Result<EntryPath, Failure> {
    let path = url.path().trim_end_matches('/');
    let parent = path.rfind('/').map_or("/", |end| &path[..=end]);
    let mut above = url.clone();
    above.set_path(parent);
    above.set_query(None);
    EntryPath::of(above.as_str(), url.as_str()).map_err(|error| Failure::Usage {
        reason: format!(
            "{} gives no name for a file among several ({error}): download it alone",
            redact_url(url.as_str())
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(url: &str) -> Result<String, Failure> {
        own_name(&url.parse().unwrap()).map(|path| path.to_string())
    }

    #[test]
    fn a_file_among_several_has_the_name_of_its_url() {
        assert_eq!(name("http://h/d/a%20b.txt?token=x").unwrap(), "a b.txt");
        assert_eq!(name("http://h/f").unwrap(), "f");
        assert_eq!(name("s3://bucket/d/sub/").unwrap(), "sub");
        for odd in [
            "http://h/",
            "http://h/d/%2e%2e%2fx",
            "http://h/a%00",
            "s3://bucket",
        ] {
            assert!(name(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn urls_that_clash_are_told_without_their_secrets() {
        let mut plan = Plan::default();
        for url in [
            "http://me:word@h/x/f?token=secret",
            "http://h/y/f?sig=secret",
        ] {
            let url: Url = url.parse().unwrap();
            let name = own_name(&url).unwrap();
            plan.add(url, Path::new("/out"), &name, None);
        }
        let told = plan.without_doubles().unwrap_err().to_string();
        assert!(told.contains("would both become /out/f"), "{told}");
        assert!(!told.contains("word") && !told.contains("secret"), "{told}");
        let told = own_name(&"http://me:word@h/?token=secret".parse().unwrap());
        let told = told.unwrap_err().to_string();
        assert!(!told.contains("word") && !told.contains("secret"), "{told}");
    }

    #[test]
    fn a_directory_ends_with_a_slash() {
        let with = |url: &str| directory(&url.parse().unwrap()).to_string();
        assert_eq!(with("http://h/d?x=y"), "http://h/d/?x=y");
        assert_eq!(with("s3://bucket"), "s3://bucket/");
    }

    #[test]
    fn directories_are_made_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("out");
        let plan = |names: &[&str]| Plan {
            directories: names.iter().map(|name| root.join(name)).collect(),
            ..Plan::default()
        };
        plan(&["a", "a/b"]).make_directories(&root).unwrap();
        plan(&["a", "a/b"]).make_directories(&root).unwrap();
        assert!(root.join("a/b").is_dir());
        std::os::unix::fs::symlink("/tmp", root.join("link")).unwrap();
        let refused = plan(&["link"]).make_directories(&root).unwrap_err();
        assert_eq!(refused.exit_code(), 5, "{refused}");
    }
}
