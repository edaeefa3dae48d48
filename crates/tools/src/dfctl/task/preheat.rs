//! `dfctl task preheat`: hosts fetch a file or an image before anybody there asks for it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::preheat::event::Kind;
use api::preheat::preheat_client::PreheatClient;
use api::preheat::{Event, Outcome, Plan};
use clap::{Args, ValueEnum};
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{PreheatFileRequest, PreheatImageRequest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use runtime::secret::{redact_url, redact_urls};
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::subject::{Subject, Target};
use crate::failure::Failure;
use crate::logging::{LogArguments, LogLevel};
use crate::program::{Report, Told};
use crate::table;

/// The scheduler ends a preheat at its time limit; this much later it is not waited for any more.
const GRACE: Duration = Duration::from_secs(60);
/// Most bytes of one message: a plan names each content and host.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Hosts with a line of their own while it runs; the others are counted together.
const LINES_MAX: usize = 16;
/// Failures that are printed for people; JSON has all.
const FAILURES_TOLD_MAX: usize = 50;

/// Hosts fetch a file or an image before anybody there asks for it.
#[derive(Debug, Clone, Args)]
pub struct Preheat {
    #[command(flatten)]
    subject: Subject,

    /// Which hosts.
    #[arg(long, env = "DFGET_SCOPE", value_enum, default_value_t = Scope::AllSeedPeers)]
    scope: Scope,

    /// Address of a host; may be given several times, and beats count and percentage.
    #[arg(long = "ip", env = "DFGET_IPS", value_name = "IP")]
    ips: Vec<std::net::IpAddr>,

    /// How many hosts; beats the percentage.
    #[arg(long, env = "DFGET_COUNT", value_parser = clap::value_parser!(u32).range(1..=200))]
    count: Option<u32>,

    /// What share of the hosts.
    #[arg(long, env = "DFGET_PERCENTAGE", value_parser = clap::value_parser!(u32).range(1..=100))]
    percentage: Option<u32>,

    /// Files or layers at once.
    #[arg(long, env = "DFGET_CONCURRENT_TASK_COUNT", default_value_t = 4, value_parser = clap::value_parser!(i64).range(1..=100))]
    concurrent_task_count: i64,

    /// Priority of the downloads, 0 to 6.
    #[arg(short, long, env = "DFGET_PRIORITY", default_value_t = 6, value_parser = clap::value_parser!(i32).range(0..=6))]
    priority: i32,

    /// Ask seed peers without the scheduler's help: not served, leave it out.
    #[arg(long, env = "DFGET_REQUEST_SDK")]
    request_sdk: bool,

    /// Seed peers for --request-sdk.
    #[arg(long, env = "DFGET_REPLICAS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    replicas: u32,

    #[command(flatten)]
    logs: LogArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Scope {
    /// The seed peer that the scheduler would ask.
    SingleSeedPeer,
    /// All seed peers, or those of them that are selected.
    AllSeedPeers,
    /// All other hosts, or those of them that are selected.
    AllPeers,
}

impl Preheat {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        if self.request_sdk {
            return Err(Failure::Usage {
                reason: format!(
                    "--request-sdk (with {} replicas) is not served: leave it out, and the scheduler asks the seed peers; --scope all_seed_peers --count {0} comes closest",
                    self.replicas
                ),
            });
        }
        let target = self.subject.target()?;
        let channel = self.subject.connect().await?;
        let limit = self.subject.timeout.saturating_add(GRACE);
        match tokio::time::timeout(limit, self.watched(&target, channel)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Timeout {
                limit: self.subject.timeout,
            }),
        }
    }

    async fn watched(&self, target: &Target, channel: Channel) -> Result<Told, Failure> {
        let mut client =
            PreheatClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let begun = match target {
            Target::Image(url) => client.image(self.image_request(url)?).await,
            Target::File(url) => client.file(self.file_request(url)?).await,
        };
        match begun {
            Ok(events) => self.follow(events.into_inner()).await,
            Err(status) if status.code() == Code::Unimplemented => {
                self.unwatched(target, channel).await
            }
            Err(status) => Err(self.subject.refused(&status)),
        }
    }

    /// A scheduler of Dragonfly v2 says that it has begun, and nothing more.
    async fn unwatched(&self, target: &Target, channel: Channel) -> Result<Told, Failure> {
        let mut client = SchedulerClient::new(channel);
        let begun = match target {
            Target::Image(url) => client.preheat_image(self.image_request(url)?).await,
            Target::File(url) => client.preheat_file(self.file_request(url)?).await,
        };
        begun.map_err(|status| self.subject.refused(&status))?;
        Ok(Told::new(&Begun { watched: false }))
    }

    async fn follow(&self, mut events: Streaming<Event>) -> Result<Told, Failure> {
        let began = Instant::now();
        let broken = |status: Status| self.subject.refused(&status);
        let torn = || Failure::Broken {
            reason: "the scheduler ended the preheat before its time".to_owned(),
        };
        let Some(Kind::Plan(plan)) = events
            .message()
            .await
            .map_err(broken)?
            .and_then(|it| it.kind)
        else {
            return Err(torn());
        };
        self.logs.say(LogLevel::Info, || {
            format!(
                "{} contents for {} hosts",
                plan.contents.len(),
                plan.hosts.len()
            )
        });
        let lines = Lines::new(&plan);
        let mut course = Course::new(plan);
        while let Some(event) = events.message().await.map_err(broken)? {
            match event.kind {
                Some(Kind::Progress(it)) => {
                    if let Some(job) = it.job {
                        course.received.insert((job.host, job.content), it.received);
                        lines.show(&course, job.host);
                    }
                }
                Some(Kind::Outcome(it)) => {
                    if let Some(job) = it.job {
                        self.logs.say(LogLevel::Debug, || course.line(&it));
                        course.outcomes.insert((job.host, job.content), it);
                        lines.show(&course, job.host);
                    }
                }
                Some(Kind::Plan(_)) | None => {}
            }
        }
        lines.end();
        if course.outcomes.len() < course.plan.jobs.len() {
            return Err(torn());
        }
        let report = course.report(began.elapsed());
        Ok(Told::with_exit_code(&report, u8::from(report.failed > 0)))
    }

    fn image_request(&self, url: &str) -> Result<PreheatImageRequest, Failure> {
        let it = &self.subject;
        Ok(PreheatImageRequest {
            url: url.to_owned(),
            piece_length: it.piece_length.map(|length| length.as_u64()),
            tag: Some(it.tag.clone()),
            application: Some(it.application.clone()),
            filtered_query_params: it.filtered_query_params.clone(),
            header: it.headers.iter().cloned().collect(),
            username: it.username.clone(),
            password: it.password.clone(),
            platform: it.platform.clone(),
            scope: self.scope_name(),
            ips: self.ips.iter().map(ToString::to_string).collect(),
            percentage: self.percentage,
            count: self.count,
            concurrent_task_count: Some(self.concurrent_task_count),
            concurrent_peer_count: it.concurrent_peer_count,
            timeout: it.timeout_message(),
            priority: self.priority,
            certificate_chain: it.certificate_chain()?,
            insecure_skip_verify: it.insecure_skip_verify,
            enable_task_id_based_blob_digest: it.enable_task_id_based_blob_digest,
        })
    }

    fn file_request(&self, url: &str) -> Result<PreheatFileRequest, Failure> {
        let it = &self.subject;
        Ok(PreheatFileRequest {
            url: url.to_owned(),
            piece_length: it.piece_length.map(|length| length.as_u64()),
            tag: Some(it.tag.clone()),
            application: Some(it.application.clone()),
            filtered_query_params: it.filtered_query_params.clone(),
            header: it.headers.iter().cloned().collect(),
            scope: self.scope_name(),
            ips: self.ips.iter().map(ToString::to_string).collect(),
            percentage: self.percentage,
            count: self.count,
            concurrent_task_count: Some(self.concurrent_task_count),
            concurrent_peer_count: it.concurrent_peer_count,
            timeout: it.timeout_message(),
            priority: self.priority,
            certificate_chain: it.certificate_chain()?,
            insecure_skip_verify: it.insecure_skip_verify,
            object_storage: it.object_storage(),
            hdfs: it.hdfs(),
            output_path: None,
        })
    }

    fn scope_name(&self) -> String {
        let value = self.scope.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A preheat as it goes on. Keys are the places of host and content in the plan.
struct Course {
    plan: Plan,
    received: BTreeMap<(u32, u32), u64>,
    outcomes: BTreeMap<(u32, u32), Outcome>,
}

impl Course {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            received: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        }
    }

    fn host_name(&self, host: u32) -> String {
        let host = self.plan.hosts.get(host as usize);
        host.map_or_else(String::new, |host| match host.hostname.as_str() {
            "" => host.ip.clone(),
            name => format!("{name} ({})", host.ip),
        })
    }

    /// The URL of a content, without its secrets.
    fn url(&self, content: u32) -> Cow<'_, str> {
        let content = self.plan.contents.get(content as usize);
        content.map_or(Cow::Borrowed(""), |content| redact_url(&content.url))
    }

    fn line(&self, outcome: &Outcome) -> String {
        let job = outcome.job.unwrap_or_default();
        let how = match (outcome.error.as_str(), outcome.held) {
            ("", true) => "was there before".to_owned(),
            ("", false) => "is there".to_owned(),
            (error, _) => redact_urls(error),
        };
        format!(
            "{}: {}: {how}",
            self.host_name(job.host),
            self.url(job.content)
        )
    }

    /// Jobs that are over, all jobs, and bytes there, of one host.
    fn state(&self, host: u32) -> (usize, usize, u64) {
        let all = self.plan.jobs.iter().filter(|job| job.host == host).count();
        let of_host = (host, 0)..=(host, u32::MAX);
        let over: Vec<&Outcome> = self
            .outcomes
            .range(of_host.clone())
            .map(|(_, it)| it)
            .collect();
        let running = self
            .received
            .range(of_host)
            .filter(|(key, _)| !self.outcomes.contains_key(key))
            .map(|(_, bytes)| bytes);
        let bytes = over.iter().map(|it| &it.length).chain(running).sum();
        (over.len(), all, bytes)
    }

    fn report(&self, took: Duration) -> Preheated {
        let mut hosts: Vec<HostReport> = self
            .plan
            .hosts
            .iter()
            .map(|host| HostReport {
                hostname: host.hostname.clone(),
                ip: host.ip.clone(),
                seed: host.seed,
                held: 0,
                fetched: 0,
                failures: Vec::new(),
            })
            .collect();
        for (&(host, content), outcome) in &self.outcomes {
            let Some(report) = hosts.get_mut(host as usize) else {
                continue;
            };
            match (outcome.error.as_str(), outcome.held) {
                ("", true) => report.held += 1,
                ("", false) => report.fetched += 1,
                (error, _) => report.failures.push(FailureReport {
                    url: self.url(content).into_owned(),
                    error: redact_urls(error),
                }),
            }
        }
        let contents = self.plan.contents.iter().map(|content| ContentReport {
            url: redact_url(&content.url).into_owned(),
            task_id: content.task_id.clone(),
            kind: content.kind.clone(),
            length: content.length,
        });
        Preheated {
            watched: true,
            contents: contents.collect(),
            failed: hosts.iter().map(|host| host.failures.len()).sum(),
            hosts,
            notes: self.plan.notes.clone(),
            seconds: took.as_secs_f64(),
        }
    }
}

/// A line per host on the terminal.
struct Lines {
    all: MultiProgress,
    of_host: Vec<ProgressBar>,
}

impl Lines {
    fn new(plan: &Plan) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let of_host = plan.hosts.iter().take(LINES_MAX).map(|host| {
            let name = table::harmless(&host.hostname);
            all.add(
                ProgressBar::new_spinner()
                    .with_style(style.clone())
                    .with_message(name),
            )
        });
        let of_host = of_host.collect();
        Self { all, of_host }
    }

    fn show(&self, course: &Course, host: u32) {
        if let Some(line) = self.of_host.get(host as usize) {
            let (over, all, bytes) = course.state(host);
            let name = table::harmless(&course.host_name(host));
            line.set_message(format!("{name}: {over} of {all}, {}", table::bytes(bytes)));
            line.tick();
        }
    }

    fn end(self) {
        for line in self.of_host {
            line.finish_and_clear();
        }
        let _ = self.all.clear();
    }
}

/// How it went.
#[derive(Debug, Serialize)]
struct Preheated {
    watched: bool,
    contents: Vec<ContentReport>,
    hosts: Vec<HostReport>,
    /// Contents on hosts that are not there.
    failed: usize,
    notes: Vec<String>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct ContentReport {
    url: String,
    task_id: String,
    kind: String,
    length: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HostReport {
    hostname: String,
    ip: String,
    seed: bool,
    /// Contents that were there before.
    held: usize,
    fetched: usize,
    failures: Vec<FailureReport>,
}

#[derive(Debug, Serialize)]
struct FailureReport {
    url: String,
    error: String,
}

impl Report for Preheated {
    fn text(&self) -> String {
        let (held, fetched): (usize, usize) =
            self.hosts.iter().fold((0, 0), |(held, fetched), host| {
                (held + host.held, fetched + host.fetched)
            });
        let headline = if self.failed == 0 {
            "Preheat Succeeded!"
        } else {
            "Preheating Task Failed!"
        };
        let mut lines = vec![
            headline.to_owned(),
            format!(
                "{} contents, {} hosts: {fetched} fetched, {held} there before, {} failed, in {:.1} s",
                self.contents.len(),
                self.hosts.len(),
                self.failed,
                self.seconds
            ),
        ];
        lines.extend(self.notes.iter().map(|note| table::harmless(note)));
        let failures = self.hosts.iter().flat_map(|host| {
            let name = format!("{} ({})", host.hostname, host.ip);
            host.failures
                .iter()
                .map(move |failure| format!("{name}: {}: {}", failure.url, failure.error))
        });
        lines.extend(
            failures
                .take(FAILURES_TOLD_MAX)
                .map(|line| table::harmless(&line)),
        );
        if self.failed > FAILURES_TOLD_MAX {
            lines.push(format!("and {} more", self.failed - FAILURES_TOLD_MAX));
        }
        lines.join("\n")
    }
}

/// It has begun; nobody tells the end.
#[derive(Debug, Serialize)]
struct Begun {
    watched: bool,
}

impl Report for Begun {
    fn text(&self) -> String {
        "Preheat Succeeded!\nThis scheduler only tells that it has begun: see `dfctl task stat` for what is there".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use api::preheat::{Content, Host, Job};

    use super::*;

    #[test]
    fn a_failure_shows_no_secrets() {
        let url = "http://user:S3CRETPW@h/f?token=S3CRET";
        let job = Job {
            content: 0,
            host: 0,
        };
        let mut course = Course::new(Plan {
            contents: vec![Content {
                url: url.to_owned(),
                ..Content::default()
            }],
            hosts: vec![Host {
                hostname: "seed".to_owned(),
                ..Host::default()
            }],
            jobs: vec![job],
            notes: Vec::new(),
        });
        let outcome = Outcome {
            job: Some(job),
            // As a scheduler says it that passes on what a daemon says.
            error: format!("cannot read {url}: 404"),
            ..Outcome::default()
        };
        let line = course.line(&outcome);
        course.outcomes.insert((0, 0), outcome);
        let report = course.report(Duration::ZERO);
        let json = Told::new(&report).json().to_string();
        for told in [&line, &report.text(), &json] {
            assert!(!told.contains("S3CRET"), "{told}");
            assert!(told.contains("@h/f") && told.contains("404"), "{told}");
        }
    }
}
