//! End to end: real processes, real sockets, the client library and the command line as people use them.
#![forbid(unsafe_code)]

mod bad_input;
mod batching;
mod consuming;
mod disk_trouble;
mod filters;
mod first_offset;
mod groups;
mod house_rules;
mod idle;
mod lending;
mod log_tool;
mod long_polling;
mod offsets;
mod orderly;
mod perf_tool;
mod pop;
mod real_input;
mod requests;
mod retry;
mod rewrite;
mod segments;
mod slow_reader;
mod smoke;
mod startup;
mod survival;
