//! Values as bytes: postcard.

use std::any::type_name;

use polyproc_core::Payload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A value that can go to another process: everything that serde can write and read back without borrowing.
///
/// The encoding is postcard, which does not describe itself: types that need that
/// (`#[serde(untagged)]`, `#[serde(flatten)]`, `skip_serializing_if`, `serde_json::Value`) give a [`CodecError`].
pub trait Transfer: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Transfer for T {}

/// A value could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("could not {step} of type {type_name}: {reason}")]
pub struct CodecError {
    step: String,
    type_name: String,
    reason: String,
}

impl CodecError {
    fn new<T>(step: &str, reason: impl ToString) -> Self {
        Self { step: step.to_owned(), type_name: type_name::<T>().to_owned(), reason: reason.to_string() }
    }
}

/// `what` is "the argument" or "the result".
pub(crate) fn encode<T: Serialize>(what: &str, value: &T) -> Result<Payload, CodecError> {
    let bytes = postcard::to_stdvec(value);
    bytes.map(Payload::from).map_err(|error| CodecError::new::<T>(&format!("encode {what}"), error))
}

pub(crate) fn decode<T: DeserializeOwned>(what: &str, payload: &Payload) -> Result<T, CodecError> {
    let step = || format!("decode {what}");
    match postcard::take_from_bytes(&payload.head) {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(CodecError::new::<T>(&step(), format!("{} bytes left over", left.len()))),
        Err(error) => Err(CodecError::new::<T>(&step(), error)),
    }
}

/// Decodes the argument, calls, encodes the result. An error goes back as an encoded [`CodecError`].
pub(crate) fn through<A, R>(input: &Payload, call: impl FnOnce(A) -> R) -> Result<Payload, Payload>
where
    A: DeserializeOwned,
    R: Serialize,
{
    decode("the argument", input).map(call).and_then(|result| encode("the result", &result)).map_err(raise)
}

/// A [`CodecError`] on its way to the parent.
pub(crate) fn raise(error: CodecError) -> Payload {
    encode("the error", &error).expect("three strings can be encoded")
}

/// A [`CodecError`] that came from a child.
pub(crate) fn raised(payload: &Payload) -> CodecError {
    decode("the error", payload).unwrap_or_else(|error| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_travel_says_so() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(u32),
        }
        let payload = encode("the argument", &Untagged::Number(1)).expect("writing works");
        let error = decode::<Untagged>("the argument", &payload).expect_err("reading does not");
        assert!(error.to_string().starts_with("could not decode the argument of type "), "{error}");
        assert_eq!(raised(&raise(error.clone())), error);
    }

    #[test]
    fn leftovers_and_cuts_are_errors() {
        let payload = encode("x", &(1u8, "text".to_owned())).expect("plain data");
        assert_eq!(decode::<(u8, String)>("x", &payload), Ok((1, "text".to_owned())));
        assert!(decode::<u8>("x", &payload).is_err());
        assert!(decode::<(u8, String, u64)>("x", &payload).is_err());
    }
}
