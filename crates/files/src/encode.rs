//! From what was taken to frames.

use bytes::Bytes;
use image::batch::BatchWriter;
use image::frame::{FrameKind, FrameWriter};
use image::{FileChanges, PAGE_BYTES, PageTarget};

use crate::content::{Content, Piece};

/// The frames of changes, and of content that comes with them; they go to `out` in the order in which they apply.
pub fn frames(
    changes: FileChanges,
    content: &[Content],
    writer: &mut FrameWriter,
    out: &mut dyn FnMut(Bytes),
) {
    writer.files(changes).into_iter().for_each(&mut *out);
    for content in content {
        let mut batch = BatchWriter::new(PageTarget::File(content.file));
        for piece in &content.pieces {
            match piece {
                Piece::Zero(range) => {
                    flush_if_full(&mut batch, writer, out);
                    batch.gone(*range);
                }
                Piece::Data(start, bytes) => write(&mut batch, *start, bytes, writer, out),
            }
        }
        flush(&mut batch, writer, out);
    }
}

fn write(
    batch: &mut BatchWriter,
    mut at: u64,
    mut bytes: &[u8],
    writer: &mut FrameWriter,
    out: &mut dyn FnMut(Bytes),
) {
    while !bytes.is_empty() {
        flush_if_full(batch, writer, out);
        let room = batch.room_bytes() / PAGE_BYTES as usize * PAGE_BYTES as usize;
        let (now, rest) = bytes.split_at(room.min(bytes.len()));
        batch.whole(at, now);
        at += now.len() as u64;
        bytes = rest;
    }
}

fn flush_if_full(batch: &mut BatchWriter, writer: &mut FrameWriter, out: &mut dyn FnMut(Bytes)) {
    if batch.room_bytes() < PAGE_BYTES as usize {
        flush(batch, writer, out);
    }
}

fn flush(batch: &mut BatchWriter, writer: &mut FrameWriter, out: &mut dyn FnMut(Bytes)) {
    if !batch.is_empty() {
        out(writer.frame(FrameKind::Pages, &batch.finish()));
    }
}
