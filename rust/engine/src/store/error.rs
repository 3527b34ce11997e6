//! What can go wrong with files of weights. Every variant maps to one Python exception.

use std::path::{Path, PathBuf};

/// A failure of the weight store. Messages name the file and, where known, the tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file is damaged or of an unsupported form.
    #[error("{}: {}{reason}", file.display(), prefix(tensor))]
    Format {
        /// The file.
        file: PathBuf,
        /// The tensor at fault, where one is known.
        tensor: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// The file does not exist, or is not a file.
    #[error("{}: {reason}", file.display())]
    Missing {
        /// The path that was asked for.
        file: PathBuf,
        /// Whether it is absent or a directory.
        reason: String,
    },
    /// The operating system refused to read the file.
    #[error("{}: {reason}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's own words.
        reason: String,
    },
    /// A tensor is absent, or its shape, type or values do not serve.
    #[error("tensor {tensor:?}{}: {reason}", origin(file))]
    Weight {
        /// The tensor.
        tensor: String,
        /// The file that holds it, unless it was added from memory.
        file: Option<PathBuf>,
        /// What is wrong.
        reason: String,
    },
}

fn prefix(tensor: &Option<String>) -> String {
    tensor.as_ref().map(|name| format!("tensor {name:?}: ")).unwrap_or_default()
}

fn origin(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!(" of {}", file.display())).unwrap_or_default()
}

impl StoreError {
    pub(super) fn format(file: &Path, reason: impl Into<String>) -> Self {
        Self::Format { file: file.to_owned(), tensor: None, reason: reason.into() }
    }

    pub(super) fn tensor(file: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Format { file: file.to_owned(), tensor: Some(shorten(tensor)), reason: reason.into() }
    }

    /// A [`StoreError::Weight`] of a tensor that came from `file`, or from memory.
    pub fn weight(tensor: &str, file: Option<&Path>, reason: impl Into<String>) -> Self {
        Self::Weight { tensor: shorten(tensor), file: file.map(Path::to_owned), reason: reason.into() }
    }

    pub(super) fn io(file: &Path, error: &std::io::Error) -> Self {
        let file = file.to_owned();
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { file, reason: "no such file".into() },
            _ => Self::Io { file, reason: error.to_string() },
        }
    }
}

/// A hostile file may hold names of megabytes; a message may not.
pub(super) fn shorten(text: &str) -> String {
    const LIMIT: usize = 200;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
