//! The files of a log in memory: for benchmarks, tests and simulations.

use std::collections::BTreeMap;
use std::io;

use crate::recover::SegmentStore;
use crate::sealed::PAGE_BYTES;
use crate::segment::SegmentBase;

/// Segments and indexes that cost no disk. Everything is durable at once.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    pub segments: BTreeMap<SegmentBase, Vec<u8>>,
    pub indexes: BTreeMap<SegmentBase, Vec<u8>>,
}

impl SegmentStore for MemoryStore {
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        Ok(self.segments.iter().map(|(base, bytes)| (*base, bytes.len() as u64)).collect())
    }

    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&mut self, _: SegmentBase) -> io::Result<()> {
        Ok(())
    }

    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        Ok(self.indexes.iter().map(|(base, bytes)| (*base, bytes.len() as u64)).collect())
    }

    fn read_index(&mut self, segment: SegmentBase, page: u32, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.indexes.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let page = bytes.chunks_exact(PAGE_BYTES).nth(page as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(page);
        Ok(())
    }

    fn write_index(
        &mut self,
        segment: SegmentBase,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes)?;
        self.indexes.insert(segment, bytes);
        Ok(())
    }
}
