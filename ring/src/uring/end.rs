//! The end of a ring: everything is cancelled and waited for.

use std::io;
use std::net::Shutdown;

use io_uring::types::CancelBuilder;
use io_uring::{cqueue, opcode};

use super::work::Work;
use super::{IGNORED, Uring};
use crate::slab::Slab;
use crate::{Slot, socket};

impl Uring {
    /// Waits until the kernel has let go of everything. An error says that it may not have.
    fn quiesce(&mut self) -> io::Result<()> {
        for entry in self.queue.drain(..) {
            if self.ops.get(Slot::from_u64(entry.get_user_data())).is_some() {
                self.in_kernel_count -= 1;
            }
        }
        for (_, entry) in self.sockets.iter() {
            let _ = entry.stream.shutdown(Shutdown::Both);
        }
        self.queue
            .push_back(opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(IGNORED));
        while self.in_kernel_count > 0 {
            self.enter(true, None)?;
            while let Some(cqe) = self.ring.completion().next() {
                let Some(op) = self.ops.get(Slot::from_u64(cqe.user_data())) else { continue };
                if matches!(op.work, Work::Accept { .. }) && cqe.result() >= 0 {
                    // Dropped, and thereby closed.
                    let _ = socket::accepted(cqe.result());
                }
                if !cqueue::more(cqe.flags()) {
                    self.in_kernel_count -= 1;
                }
            }
        }
        self.buffers.unregister(&self.ring)
    }
}

impl Drop for Uring {
    /// Memory that the kernel may write to must outlive every submission, so this waits: sockets are shut down,
    /// everything is cancelled, and a write in flight at the disk is waited for. If the kernel refuses to be waited
    /// for, the memory is leaked instead of freed.
    fn drop(&mut self) {
        if self.quiesce().is_err() {
            std::mem::forget(std::mem::replace(&mut self.ops, Slab::new()));
            self.buffers.leak();
        }
    }
}
