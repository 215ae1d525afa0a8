//! Decodes values.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyList, PyString, PyTuple};

use super::simple::LONG;
use super::source::{Source, broken};
use super::tag::{
    BUFFERS, BYTES, DICT, FALSE, FLOAT, INT, LENT_BUFFERS, LENT_BYTES, LIST, NONE, PICKLE, REPEATED, STR, TRUE, TUPLE,
};

impl Source<'_> {
    /// Decodes the next value.
    #[inline]
    pub(crate) fn decode<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.repeated.clear();
        self.decode_inner(py)
    }

    /// Keeps a long string or bytes object, to which later values may refer.
    fn note(&mut self, value: &Bound<'_, PyAny>, len: usize) {
        if len >= LONG {
            self.repeated.push(value.clone().unbind());
        }
    }

    /// Decodes the next value, which may be in a container.
    pub(super) fn decode_inner<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let [tag] = self.take()?;
        match tag {
            INT => Ok(i64::from_le_bytes(self.take()?).into_pyobject(py)?.into_any()),
            FLOAT => Ok(PyFloat::new(py, f64::from_le_bytes(self.take()?)).into_any()),
            NONE => Ok(py.None().into_bound(py)),
            TRUE | FALSE => Ok(PyBool::new(py, tag == TRUE).to_owned().into_any()),
            STR => {
                let len = self.take_len()?;
                let text = std::str::from_utf8(self.take_bytes(len)?).map_err(|_| broken())?;
                let text = PyString::new(py, text).into_any();
                self.note(&text, len);
                Ok(text)
            }
            BYTES => {
                let len = self.take_len()?;
                let bytes = PyBytes::new(py, self.take_bytes(len)?).into_any();
                self.note(&bytes, len);
                Ok(bytes)
            }
            REPEATED => {
                let which = self.take_len()?;
                self.repeated.get(which).map(|value| value.bind(py).clone()).ok_or_else(broken)
            }
            TUPLE => Ok(PyTuple::new(py, self.decode_many(py)?)?.into_any()),
            LIST => Ok(PyList::new(py, self.decode_many(py)?)?.into_any()),
            DICT => {
                let dict = PyDict::new(py);
                for _ in 0..self.take_len()? {
                    dict.set_item(self.decode_inner(py)?, self.decode_inner(py)?)?;
                }
                Ok(dict.into_any())
            }
            PICKLE => self.decode_pickle(py),
            BUFFERS => self.decode_with_buffers(py, None),
            LENT_BUFFERS => {
                let loan = self.take_loan()?;
                self.decode_with_buffers(py, Some(&loan))
            }
            LENT_BYTES => Ok(self.take_loan()?.to_bytes(py).into_any()),
            _ => Err(broken()),
        }
    }

    fn decode_many<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let count = self.take_len()?;
        if count > self.bytes.len() {
            return Err(broken());
        }
        (0..count).map(|_| self.decode_inner(py)).collect()
    }
}
