//! The body of a request, which tells whether the connection has asked for it.
//!
//! - Layer: edge
//! - Takes: bytes.
//! - Gives: the same, over HTTP/1.1 or HTTP/2; whether one byte of them can have left.
//! - On failure: nothing can fail.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

/// Whether a connection has looked at a body. Before that not one byte of it can have arrived.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched(Arc<AtomicBool>);

impl Touched {
    pub(super) fn is_so(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub(super) struct Body {
    rest: Bytes,
    touched: Touched,
}

impl Body {
    pub(super) fn new(bytes: Bytes, touched: &Touched) -> Self {
        Self { rest: bytes, touched: touched.clone() }
    }

    fn touch(&self) {
        self.touched.0.store(true, Ordering::Release);
    }
}

/// For HTTP/2: a connection queues the body, and looks at its bytes when it writes them.
impl Buf for Body {
    fn remaining(&self) -> usize {
        self.rest.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.touch();
        self.rest.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
    }
}

/// For HTTP/1.1.
impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.touch();
        let bytes = std::mem::take(&mut self.rest);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
