//! Counting the calls of a server, under the names that Go's Prometheus middleware for gRPC made standard and that
//! Dragonfly v2's dashboards use: `grpc_server_started_total`, `grpc_server_handled_total` and the two message counters.
//!
//! The methods are read from the descriptors of the services: a path that is none of theirs is not counted, so that
//! strangers cannot make labels. A call that ends without a status, because its client went away, counts as `Canceled`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::HeaderMap;
use tower::{Layer, Service};

/// A layer that counts calls; for the axum router of a server's routes (`Routes::into_axum_router`).
#[derive(Clone)]
pub struct CallCounter {
    methods: Arc<HashMap<String, Method>>,
}

/// Why calls cannot be counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CountError {
    /// A descriptor set does not parse.
    #[error("descriptor set: {0}")]
    Descriptor(#[from] prost::DecodeError),
    /// The registry has metrics of these names already.
    #[error("call counters: {0}")]
    Registry(#[from] prometheus::Error),
}

/// The counters of one method.
#[derive(Clone)]
struct Method {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: IntCounterVec,
    labels: [String; 3],
}

impl CallCounter {
    /// Counters in `registry` for every method of `services` (full names, such as `grpc.health.v1.Health`), at 0 from the
    /// start. The services are looked up in the encoded `descriptor_sets`.
    ///
    /// # Errors
    /// A descriptor set does not parse, or the names are taken.
    pub fn new(
        registry: &Registry,
        descriptor_sets: &[&[u8]],
        services: &[&str],
    ) -> Result<Self, CountError> {
        const LABELS: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let started = counter(
            "grpc_server_started_total",
            "Grows when a call begins.",
            &LABELS,
        )?;
        let received = counter(
            "grpc_server_msg_received_total",
            "Grows with each message of a client.",
            &LABELS,
        )?;
        let sent = counter(
            "grpc_server_msg_sent_total",
            "Grows with each message to a client.",
            &LABELS,
        )?;
        let handled = counter(
            "grpc_server_handled_total",
            "Grows when a call ends, by its status; divide by grpc_server_started_total.",
            &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
        )?;
        let mut methods = HashMap::new();
        for set in descriptor_sets {
            let methods_found = methods_of(&FileDescriptorSet::decode(*set)?);
            for (kind, service, method) in methods_found
                .into_iter()
                .filter(|it| services.contains(&it.1.as_str()))
            {
                let path = format!("/{service}/{method}");
                let labels = [kind.to_owned(), service, method];
                let entry = Method {
                    started: started.with_label_values(&labels),
                    received: received.with_label_values(&labels),
                    sent: sent.with_label_values(&labels),
                    handled: handled.clone(),
                    labels,
                };
                methods.insert(path, entry);
            }
        }
        Ok(Self {
            methods: Arc::new(methods),
        })
    }
}

/// Kind, full service name and name of each method.
fn methods_of(set: &FileDescriptorSet) -> Vec<(&'static str, String, String)> {
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let service_name = match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "unary",
                    (true, false) => "client_stream",
                    (false, true) => "server_stream",
                    (true, true) => "bidi_stream",
                };
                methods.push((kind, service_name.clone(), method.name().to_owned()));
            }
        }
    }
    methods
}

impl<S> Layer<S> for CallCounter {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            counter: self.clone(),
        }
    }
}

/// A service behind a [`CallCounter`].
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    counter: CallCounter,
}

impl<S> Service<Request> for Counted<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(method) = self.counter.methods.get(request.uri().path()).cloned() else {
            return Box::pin(self.inner.call(request));
        };
        method.started.inc();
        let received = method.received.clone();
        let request = request.map(|body| Body::new(Watched::new(body, received, None)));
        // Made before the call begins: if the client goes away first, dropping it counts the end.
        let mut end = End {
            method: Some(method.clone()),
        };
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?;
            // A refusal has its status in the headers and no body.
            if let Some(code) = code_in(response.headers()) {
                end.count(code);
            }
            Ok(response.map(|body| Body::new(Watched::new(body, method.sent, Some(end)))))
        })
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers
        .get("grpc-status")
        .map(|status| Code::from_bytes(status.as_bytes()))
}

/// Counts the end of a call, once.
struct End {
    method: Option<Method>,
}

impl End {
    fn count(&mut self, code: Code) {
        if let Some(method) = self.method.take() {
            let [kind, service, name] = &method.labels;
            method
                .handled
                .with_label_values(&[kind, service, name, code_name(code)])
                .inc();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

/// A code as Go spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A body whose messages, and whose end if it is an answer, are counted as they pass.
struct Watched {
    body: Body,
    heads: MessageHeads,
    messages: IntCounter,
    end: Option<End>,
}

impl Watched {
    fn new(body: Body, messages: IntCounter, end: Option<End>) -> Self {
        Self {
            body,
            heads: MessageHeads::default(),
            messages,
            end,
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let begun = self.heads.count(data);
                self.messages.inc_by(begun);
            }
            if let (Some(trailers), Some(end)) = (frame.trailers_ref(), self.end.as_mut()) {
                end.count(code_in(trailers).unwrap_or(Code::Unknown));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Finds where messages begin in a byte stream cut anywhere: each has a head of a flag and a length (u32, big-endian).
#[derive(Default)]
struct MessageHeads {
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the current message that are still to come.
    rest: usize,
}

impl MessageHeads {
    /// How many heads became whole in `data`.
    fn count(&mut self, mut data: &[u8]) -> u64 {
        let mut count = 0;
        while !data.is_empty() {
            let skipped = self.rest.min(data.len());
            self.rest -= skipped;
            data = &data[skipped..];
            let taken = (self.head.len() - self.head_len).min(data.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&data[..taken]);
            self.head_len += taken;
            data = &data[taken..];
            if self.head_len == self.head.len() {
                let [_, len @ ..] = self.head;
                self.rest = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
                self.head_len = 0;
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for len in [0_u8, 3, 200] {
            bytes.extend([0, 0, 0, 0, len]);
            bytes.extend(vec![7; usize::from(len)]);
        }
        for step in 1..=bytes.len() {
            let mut heads = MessageHeads::default();
            let count: u64 = bytes.chunks(step).map(|part| heads.count(part)).sum();
            assert_eq!(count, 3, "in steps of {step}");
        }
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_and_status() {
        use tonic::service::Routes;
        use tonic_health::pb::HealthCheckRequest;
        use tonic_health::pb::health_client::HealthClient;

        let registry = Registry::new();
        let counter = CallCounter::new(
            &registry,
            &[tonic_health::pb::FILE_DESCRIPTOR_SET],
            &["grpc.health.v1.Health"],
        )
        .unwrap();
        let (_, health) = crate::grpc::health();
        let routes = Routes::from(Routes::new(health).into_axum_router().layer(counter));
        let shutdown = crate::shutdown::Shutdown::new();
        let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap(), "server.port").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = crate::grpc::server(&Default::default()).unwrap();
        crate::grpc::spawn_tcp("grpc", server, routes, listener, &shutdown);

        let mut client =
            HealthClient::new(crate::grpc::channel(&address, &Default::default()).unwrap());
        client.check(HealthCheckRequest::default()).await.unwrap();
        client
            .check(HealthCheckRequest {
                service: "x".to_owned(),
            })
            .await
            .unwrap_err();
        let mut watch = client
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        watch.message().await.unwrap();
        drop((watch, client));
        shutdown.drain(std::time::Duration::from_secs(5)).await;

        let text = crate::metrics::text(&registry).unwrap();
        let method = |name, kind| {
            format!(
                "grpc_method=\"{name}\",grpc_service=\"grpc.health.v1.Health\",grpc_type=\"{kind}\"}}"
            )
        };
        for line in [
            format!(
                "grpc_server_started_total{{{} 2\n",
                method("Check", "unary")
            ),
            format!(
                "grpc_server_msg_received_total{{{} 2\n",
                method("Check", "unary")
            ),
            format!(
                "grpc_server_msg_sent_total{{{} 1\n",
                method("Check", "unary")
            ),
            format!(
                "grpc_server_handled_total{{grpc_code=\"OK\",{} 1\n",
                method("Check", "unary")
            ),
            format!(
                "grpc_server_handled_total{{grpc_code=\"NotFound\",{} 1\n",
                method("Check", "unary")
            ),
            format!(
                "grpc_server_msg_sent_total{{{} 1\n",
                method("Watch", "server_stream")
            ),
            format!(
                "grpc_server_handled_total{{grpc_code=\"Canceled\",{} 1\n",
                method("Watch", "server_stream")
            ),
        ] {
            assert!(text.contains(&line), "{line} is not in:\n{text}");
        }
    }
}
