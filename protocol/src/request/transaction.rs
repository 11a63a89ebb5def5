//! Transactions: 37 and 39.

use std::borrow::Cow;

use super::field::headers;

/// Values of [`EndTransactionRequest::commit_or_rollback`].
pub mod transaction_end {
    pub const UNKNOWN: i32 = 0;
    pub const COMMIT: i32 = 8;
    pub const ROLLBACK: i32 = 12;
}

headers! {
    /// END_TRANSACTION (37), oneway.
    struct EndTransactionRequest<'a> {
        topic: Option<Cow<'a, str>> = "topic",
        producer_group: Cow<'a, str> = "producerGroup",
        /// Queue offset of the half message.
        tran_state_table_offset: i64 = "tranStateTableOffset",
        /// Physical offset of the half message.
        commit_log_offset: i64 = "commitLogOffset",
        /// See [`transaction_end`].
        commit_or_rollback: i32 = "commitOrRollback",
        from_transaction_check: bool = "fromTransactionCheck" or false,
        msg_id: Option<Cow<'a, str>> = "msgId",
        transaction_id: Option<Cow<'a, str>> = "transactionId",
        broker_name: Option<Cow<'a, str>> = "bname",
    }

    /// CHECK_TRANSACTION_STATE (39), broker to client, oneway, with one stored message as body.
    struct CheckTransactionStateRequest<'a> {
        topic: Option<Cow<'a, str>> = "topic",
        tran_state_table_offset: i64 = "tranStateTableOffset",
        commit_log_offset: i64 = "commitLogOffset",
        msg_id: Option<Cow<'a, str>> = "msgId",
        transaction_id: Option<Cow<'a, str>> = "transactionId",
        offset_msg_id: Option<Cow<'a, str>> = "offsetMsgId",
        broker_name: Option<Cow<'a, str>> = "bname",
    }
}
