//! An answer whose span lasts until its last byte.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};

use crate::answer::{Answer, CutOff};
use crate::observe::traces::{Span, words};

/// A body that is told of when it is over, or nobody wants more of it.
pub(super) struct Traced {
    body: UnsyncBoxBody<Bytes, CutOff>,
    span: Span,
    sent: u64,
}

impl Traced {
    /// Lets a span last as long as the body of an answer; without a span it stays as it is.
    pub(super) fn keep(span: Span, answer: Answer) -> Answer {
        if !span.is_recording() {
            return answer;
        }
        answer.map(|body| Self { body, span, sent: 0 }.boxed_unsync())
    }
}

impl Body for Traced {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(Some(Err(_))) => self.span.fail("cut_off"),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.span.number(words::BYTES, self.sent);
    }
}
