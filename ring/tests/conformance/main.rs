//! The rules of [`ringmq_ring::Ring`], held against each ring: one suite, every test of it run on the kernel and on
//! the simulation.
//!
//! A test sees a ring, and clients that run elsewhere (threads, or the simulated network) by a script of [`Act`]s. A
//! client that must wait for the test waits at a gate; nothing sleeps.

mod harness;
mod suite;

/// Makes each function of the suite a test of its own for each ring.
macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod uring {
            $(#[test] fn $name() { crate::suite::$name(crate::harness::real::Real::new); })+
        }
        mod simulated {
            $(#[test] fn $name() {
                for seed in 0..2 {
                    crate::suite::$name(|bounds| crate::harness::simulated::Simulated::new(bounds, seed));
                }
            })+
        }
        mod uring_incremental {
            $(#[test] fn $name() { crate::suite::$name(crate::harness::real::Real::incremental); })+
        }
    };
}

conformance!(
    accept_and_echo,
    many_parts_are_sent_in_order,
    sends_of_a_socket_leave_in_order,
    a_long_send_reaches_a_slow_reader,
    the_end_of_the_stream_is_received,
    a_reset_by_the_peer_ends_receive_and_send,
    close_ends_pending_receive_and_send,
    a_dead_handle_is_refused,
    what_is_written_is_read,
    writes_in_flight_all_complete,
    a_range_off_alignment_is_read,
    a_read_past_the_end_fails,
    a_file_is_sent_at_an_odd_offset,
    a_file_that_ends_early_fails_the_send,
    close_ends_a_file_on_its_way,
    more_files_than_pipes_are_sent,
    a_wake_from_elsewhere_ends_the_wait,
    the_deadline_ends_the_wait,
    more_is_received_than_there_are_buffers,
    receive_starves_until_buffers_come_back,
    a_paused_receive_pushes_back,
    a_thousand_idle_connections,
    a_closed_listener_accepts_no_more,
);
