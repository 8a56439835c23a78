//! A port that strangers can reach: so many connections at once and no more, and none that says
//! nothing for long. What is said there is the business of who serves it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::Server;
use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at once; one more is closed without a word.
    pub(crate) connections: usize,
    /// How long the first request may take to come.
    pub(crate) first_request: Duration,
    /// How long a connection may take to the head of its next request, idle or not.
    pub(crate) next_request: Duration,
}

impl Bounds {
    /// The server with these bounds. HTTP/1.1 only.
    pub(crate) fn of<A: axum_server::Address, Acc>(
        self,
        server: Server<A, Acc>,
    ) -> Server<A, Capped<Acc>> {
        let room = Arc::new(Semaphore::new(self.connections));
        let mut server = server
            .map(|inner| Capped { inner, room })
            .http1_only()
            .first_request_timeout(self.first_request);
        server
            .http_builder()
            .http1()
            .header_read_timeout(self.next_request);
        server
    }
}

/// Accepts while there is room.
#[derive(Clone, Debug)]
pub(crate) struct Capped<A> {
    inner: A,
    room: Arc<Semaphore>,
}

impl<A, I, S> Accept<I, S> for Capped<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
{
    type Stream = Held<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            let held = Held {
                stream,
                _permit: permit,
            };
            Ok((held, service))
        })
    }
}

/// A connection and its place among those that are allowed.
#[derive(Debug)]
pub(crate) struct Held<I> {
    stream: I,
    _permit: OwnedSemaphorePermit,
}

impl<I: AsyncRead + Unpin> AsyncRead for Held<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Held<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn serve(connections: usize, patience: Duration) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds {
            connections,
            first_request: patience,
            next_request: patience,
        };
        let server = bounds.of(axum_server::from_tcp(listener).unwrap());
        let app = axum::Router::new().route("/", get(async || "here\n"));
        tokio::spawn(server.serve(app.into_make_service()));
        address
    }

    async fn ask(stream: &mut TcpStream) -> String {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer).await.unwrap_or(0);
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_the_next_finds_room_again() {
        let address = serve(2, Duration::from_secs(60)).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert!(ask(&mut stream).await.ends_with("here\n"));
            held.push(stream);
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut third).await, "");
        held.pop();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let mut again = TcpStream::connect(address).await.unwrap();
            if ask(&mut again).await.ends_with("here\n") {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "there is no room");
        }
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_closed() {
        let address = serve(2, Duration::from_millis(50)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut heard = Vec::new();
        let closed = silent.read_to_end(&mut heard);
        let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
        assert!(closed.is_ok(), "it is closed in time");
        // The same between two requests.
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut stream).await.ends_with("here\n"));
        let closed = stream.read_to_end(&mut heard);
        let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
        assert!(closed.is_ok(), "it is closed in time");
    }
}
