//! The parent's side of SyncPieces: telling a Dragonfly v2 child which pieces it can fetch here.

use std::net::SocketAddr;

use dragonfly_api::dfdaemon::v2::SyncPiecesResponse;
use futures::{Stream, StreamExt};
use protocol::{Bitmap, PieceNumber, TaskId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Engine;
use crate::link::{HeraldEvent, V2Child};

impl Engine {
    /// Pieces of a task as they become available here, each once, until all that the child is interested in were told
    /// or no more will come.
    ///
    /// # Errors
    /// INTERNAL for a task that is not here, as Dragonfly v2 answers.
    pub async fn sync_pieces(
        &self,
        task_id: &TaskId,
        interested: &[u32],
        child: SocketAddr,
    ) -> Result<impl Stream<Item = Result<SyncPiecesResponse, Status>> + Send + use<>, Status> {
        let inner = &self.inner;
        let task = inner
            .parts
            .store
            .task(task_id)
            .map_err(|error| Status::internal(error.to_string()))?
            .ok_or_else(|| Status::internal(format!("task {task_id} is not here")))?;
        let geometry = *task.geometry();
        let mut wanted = Bitmap::new(geometry.piece_count());
        for &piece in interested {
            if piece < wanted.len() {
                wanted.set(piece);
            }
        }
        let (tell, told) = mpsc::channel(usize::try_from(wanted.count()).unwrap_or(1).max(1));
        let nothing_wanted = wanted.count() == 0;
        let links = inner.hub.links_of(&task)?;
        if !nothing_wanted {
            let child = V2Child {
                child: links.new_v2_child(child.ip()),
                interested: wanted,
                tell: Some(tell),
                told_all: None,
            };
            links.tell_surely(HeraldEvent::V2Joined(child)).await;
        }
        let identity = inner.parts.identity.clone();
        Ok(
            ReceiverStream::new(told).filter_map(move |piece: PieceNumber| {
                let response = geometry.piece(piece).map(|span| {
                    Ok(SyncPiecesResponse {
                        number: piece.0,
                        offset: span.offset,
                        length: span.length,
                        ip: identity.ip.to_string(),
                        tcp_port: Some(i32::from(identity.ports.piece_tcp)),
                        quic_port: Some(i32::from(identity.ports.piece_quic)),
                    })
                });
                std::future::ready(response)
            }),
        )
    }
}
