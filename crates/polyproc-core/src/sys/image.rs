//! Loaded images: which one holds an address, how a build is told from another, and the constructors of the program.
//!
//! The address of a function differs from process to process (address space randomisation), its offset from the load
//! address of its image does not, as long as both processes loaded the same build of the image. `dl_iterate_phdr(3)`
//! tells the load addresses; the linker's build id (note `NT_GNU_BUILD_ID` of the ELF `PT_NOTE` segment) tells builds apart.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

const NT_GNU_BUILD_ID: u32 = 3;

/// An address that another process which loaded the same image can find again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// Path of a shared library; `None` is the program itself.
    pub(crate) library: Option<CString>,
    /// Bytes from the load address of the image.
    pub(crate) offset: u64,
    /// The linker's build id of the image, empty where it wrote none.
    pub(crate) build_id: Vec<u8>,
}

/// Why an address has no name, or a name no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// The address lies in no loaded image: the function was made at run time.
    #[error(
        "the function at {address:#x} is not in the program or a loaded library, so other processes cannot find it"
    )]
    NotInAnImage {
        /// The address looked for.
        address: usize,
    },
    /// A shared library without a build id cannot be told from another build of it.
    #[error(
        "the library {path} has no build id, so other processes cannot identify its functions: link it with `--build-id`"
    )]
    NoBuildId {
        /// Path of the library.
        path: String,
    },
    /// The child could not load the library that holds the function.
    #[error("could not load the library {path}: {reason}")]
    NotLoadable {
        /// Path of the library.
        path: String,
        /// What the dynamic linker said.
        reason: String,
    },
    /// The child runs another build than its parent.
    #[error("cannot find a function of the parent: this process has another build of {path}")]
    OtherBuild {
        /// Path of the image.
        path: String,
    },
    /// The offset is not in the code of the image.
    #[error("cannot find a function of the parent: offset {offset:#x} is not in the code of {path}")]
    NotCode {
        /// Path of the image.
        path: String,
        /// The offset looked for.
        offset: u64,
    },
}

/// One image as the dynamic linker shows it during one call of `dl_iterate_phdr`.
struct Image<'a> {
    index: usize,
    name: &'a CStr,
    base: usize,
    headers: &'a [libc::Elf64_Phdr],
}

impl Image<'_> {
    fn is_main(&self) -> bool {
        self.index == 0
    }

    fn segments(&self, kind: u32) -> impl Iterator<Item = &libc::Elf64_Phdr> {
        self.headers.iter().filter(move |header| header.p_type == kind)
    }

    fn code_segments(&self) -> impl Iterator<Item = Range<usize>> {
        self.segments(libc::PT_LOAD).filter(|header| header.p_flags & libc::PF_X != 0).map(|header| {
            let start = self.base.wrapping_add(to_usize(header.p_vaddr));
            start..start.wrapping_add(to_usize(header.p_memsz))
        })
    }

    fn has_code_at(&self, address: usize) -> bool {
        self.code_segments().any(|segment| segment.contains(&address))
    }

    /// The bytes of one loaded segment.
    fn bytes(&self, header: &libc::Elf64_Phdr) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.base.wrapping_add(to_usize(header.p_vaddr)));
        // SAFETY: a note segment is part of a read-only PT_LOAD segment, which stays mapped while the image is loaded;
        // the dynamic linker holds its lock during `dl_iterate_phdr`, and `self` does not outlive the call-back.
        unsafe { std::slice::from_raw_parts(start, to_usize(header.p_memsz)) }
    }

    fn build_id(&self) -> Vec<u8> {
        self.segments(libc::PT_NOTE).find_map(|header| find_build_id(self.bytes(header))).unwrap_or_default()
    }

    fn code(&self) -> Code {
        Code {
            library: (!self.is_main()).then(|| self.name.to_owned()),
            base: self.base,
            segments: self.code_segments().collect(),
            build_id: self.build_id(),
        }
    }
}

/// What is to be known of an image to name its functions and to find them.
#[derive(Debug)]
struct Code {
    library: Option<CString>,
    base: usize,
    segments: Vec<Range<usize>>,
    build_id: Vec<u8>,
}

impl Code {
    fn contains(&self, address: usize) -> bool {
        self.segments.iter().any(|segment| segment.contains(&address))
    }

    fn locate(&self, address: usize) -> Option<Location> {
        let offset = address.wrapping_sub(self.base) as u64;
        self.contains(address).then(|| Location {
            library: self.library.clone(),
            offset,
            build_id: self.build_id.clone(),
        })
    }

    fn resolve(&self, location: &Location) -> Result<usize, FunctionError> {
        let path = || match &self.library {
            Some(path) => path.to_string_lossy().into_owned(),
            None => "the program".to_owned(),
        };
        let address = self.base.wrapping_add(to_usize(location.offset));
        if self.build_id != location.build_id {
            return Err(FunctionError::OtherBuild { path: path() });
        }
        if !self.contains(address) {
            return Err(FunctionError::NotCode { path: path(), offset: location.offset });
        }
        Ok(address)
    }
}

/// The program itself, looked up once: it stays where it is. A child of the zygote finds it known.
fn program() -> &'static Code {
    static PROGRAM: OnceLock<Code> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        find_image(|image| ControlFlow::Break(image.code())).expect("the dynamic linker shows the program first")
    })
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("polyproc runs on 64-bit Linux")
}

/// Walks the notes (ELF specification, "Note Section": three 4-byte words, then name and descriptor, each padded to 4).
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    loop {
        let (name_len, desc_len, kind) = (word(notes, 0)? as usize, word(notes, 4)? as usize, word(notes, 8)?);
        let desc_at = 12 + name_len.next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name_len)? == b"GNU\0" {
            return Some(notes.get(desc_at..desc_at + desc_len)?.to_vec());
        }
        notes = notes.get(desc_at + desc_len.next_multiple_of(4)..)?;
    }
}

/// Calls `visit` for every loaded image, the program first, until it breaks.
fn find_image<T>(visit: impl FnMut(&Image<'_>) -> ControlFlow<T>) -> Option<T> {
    struct Walk<T, V> {
        visit: V,
        index: usize,
        found: Option<T>,
    }
    unsafe extern "C" fn step<T, V: FnMut(&Image<'_>) -> ControlFlow<T>>(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        walk: *mut c_void,
    ) -> c_int {
        // SAFETY: `walk` is the `Walk` that `find_image` passed, borrowed by nobody else during the call.
        let walk = unsafe { &mut *walk.cast::<Walk<T, V>>() };
        // SAFETY: the dynamic linker passes a valid record for the time of this call.
        let info = unsafe { &*info };
        // SAFETY: `dlpi_name` is null or a string that lives as long as the image.
        let name = if info.dlpi_name.is_null() { c"" } else { unsafe { CStr::from_ptr(info.dlpi_name) } };
        // SAFETY: `dlpi_phdr` points to `dlpi_phnum` program headers of the loaded image.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let image = Image { index: walk.index, name, base: to_usize(info.dlpi_addr), headers };
        walk.index += 1;
        match (walk.visit)(&image) {
            ControlFlow::Continue(()) => 0,
            ControlFlow::Break(found) => {
                walk.found = Some(found);
                1
            }
        }
    }
    fn step_of<T, V: FnMut(&Image<'_>) -> ControlFlow<T>>(
        _: &V,
    ) -> unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int {
        step::<T, V>
    }
    let step = step_of(&visit);
    let mut walk = Walk { visit, index: 0, found: None };
    // SAFETY: `step` matches the type of `walk`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(step), (&raw mut walk).cast()) };
    walk.found
}

/// Names `address` so that a process with the same images can [`resolve`] it.
pub(crate) fn locate(address: usize) -> Result<Location, FunctionError> {
    if let Some(location) = program().locate(address) {
        return Ok(location);
    }
    let library = find_image(|image| match image.has_code_at(address) {
        true => ControlFlow::Break(image.code()),
        false => ControlFlow::Continue(()),
    });
    match library.and_then(|library| library.locate(address)) {
        None => Err(FunctionError::NotInAnImage { address }),
        Some(Location { library: Some(path), build_id, .. }) if build_id.is_empty() => {
            Err(FunctionError::NoBuildId { path: path.to_string_lossy().into_owned() })
        }
        Some(location) => Ok(location),
    }
}

/// The address in this process that `location` names; loads the library when it is not there yet.
pub(crate) fn resolve(location: &Location) -> Result<usize, FunctionError> {
    let Some(path) = location.library.as_deref() else { return program().resolve(location) };
    let loaded = || {
        find_image(|image| match !image.is_main() && image.name == path {
            true => ControlFlow::Break(image.code()),
            false => ControlFlow::Continue(()),
        })
    };
    if let Some(library) = loaded() {
        return library.resolve(location);
    }
    // SAFETY: `path` is a C string; the library's constructors run, as they did in the parent, which runs its code.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    let not_loadable = |reason| FunctionError::NotLoadable { path: path.to_string_lossy().into_owned(), reason };
    if handle.is_null() {
        // SAFETY: `dlerror` returns null or a string that stays valid until this thread's next dl call.
        let reason = unsafe { libc::dlerror() };
        // SAFETY: `dlopen` failed just now, so there is a message.
        let reason = unsafe { CStr::from_ptr(reason) };
        return Err(not_loadable(reason.to_string_lossy().into_owned()));
    }
    loaded()
        .ok_or_else(|| not_loadable("the dynamic linker loaded it under another name".to_owned()))?
        .resolve(location)
}

/// The addresses of the code of the program and of libc, which all children run.
pub(crate) fn common_code() -> Vec<Range<usize>> {
    let libc = find_image(|image| match image.has_code_at(libc::malloc as *const () as usize) {
        true => ControlFlow::Break(image.code()),
        false => ControlFlow::Continue(()),
    });
    // One and the same in a static program: looked at twice, changed once.
    program().segments.iter().cloned().chain(libc.into_iter().flat_map(|libc| libc.segments)).collect()
}

/// Whether `address` belongs to the program itself, not to a shared library.
#[cfg(feature = "auto-init")]
pub(crate) fn is_in_program(address: usize) -> bool {
    program().contains(address)
}

/// A constructor as the dynamic linker calls it: `argc`, `argv`, `envp`.
#[cfg(feature = "auto-init")]
pub(crate) type Constructor =
    unsafe extern "C" fn(c_int, *const *const std::ffi::c_char, *const *const std::ffi::c_char);

/// The program's constructors that come after `own` in its `.init_array`; none for a static program without relocation.
#[cfg(feature = "auto-init")]
pub(crate) fn constructors_after(own: Constructor) -> Vec<Constructor> {
    #[repr(C)]
    struct Dyn {
        tag: i64,
        value: u64,
    }
    const DT_INIT_ARRAY: i64 = 25;
    const DT_INIT_ARRAYSZ: i64 = 27;
    let array = find_image(|image| {
        let Some(header) = image.segments(libc::PT_DYNAMIC).next() else { return ControlFlow::Break(None) };
        let table: *const Dyn = std::ptr::with_exposed_provenance(image.base.wrapping_add(to_usize(header.p_vaddr)));
        // SAFETY: PT_DYNAMIC covers whole `Dyn` records in a segment that stays mapped as long as the program.
        let table = unsafe { std::slice::from_raw_parts(table, to_usize(header.p_memsz) / size_of::<Dyn>()) };
        let value = |tag| table.iter().take_while(|d| d.tag != 0).find(|d| d.tag == tag).map(|d| to_usize(d.value));
        ControlFlow::Break(match (value(DT_INIT_ARRAY), value(DT_INIT_ARRAYSZ)) {
            (Some(at), Some(len_bytes)) => Some((image.base.wrapping_add(at), len_bytes / size_of::<usize>())),
            _ => None,
        })
    });
    let Some(Some((start, len))) = array else { return Vec::new() };
    // SAFETY: DT_INIT_ARRAY is an array of DT_INIT_ARRAYSZ bytes of function pointers, relocated before constructors run;
    // entries may be 0 or -1 by convention of older linkers, so they are read as integers first.
    let entries = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<usize>(start), len) };
    let after = entries.iter().skip_while(|&&entry| entry != own as usize).skip(1);
    after
        .filter(|&&entry| entry != 0 && entry != usize::MAX)
        // SAFETY: every other entry is a constructor of this program.
        .map(|&entry| unsafe {
            std::mem::transmute::<*const (), Constructor>(std::ptr::with_exposed_provenance(entry))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_the_program_is_found_again() {
        let address = a_function_of_the_program_is_found_again as fn() as usize;
        let location = locate(address).expect("test code is in the program");
        assert_eq!(location.library, None);
        assert_eq!(resolve(&location), Ok(address));
    }

    #[test]
    fn a_function_of_a_library_is_found_again() {
        if cfg!(target_feature = "crt-static") {
            return eprintln!("not tried: this program has no libraries");
        }
        let address = libc::getpid as *const () as usize;
        let location = locate(address).expect("libc is a loaded library");
        assert!(location.library.is_some());
        assert_eq!(resolve(&location), Ok(address));
    }

    #[test]
    fn other_builds_data_and_heap_are_refused() {
        let heap = Box::new(0u8);
        let address = &raw const *heap as usize;
        assert_eq!(locate(address), Err(FunctionError::NotInAnImage { address }));

        let good = locate(find_build_id as *const () as usize).expect("test code is in the program");
        let other = Location { build_id: vec![1, 2, 3], ..good.clone() };
        assert!(matches!(resolve(&other), Err(FunctionError::OtherBuild { .. })));
        let beyond = Location { offset: u64::MAX / 2, ..good.clone() };
        assert!(matches!(resolve(&beyond), Err(FunctionError::NotCode { .. })));
        let missing = Location { library: Some(c"/nonexistent/lib.so".to_owned()), ..good };
        assert!(matches!(resolve(&missing), Err(FunctionError::NotLoadable { .. })));
    }

    #[test]
    fn notes_are_walked_and_bad_ones_survived() {
        let note = |kind: u32, name: &[u8], desc: &[u8]| {
            let mut bytes = Vec::new();
            for word in [u32::try_from(name.len()).expect("short"), u32::try_from(desc.len()).expect("short"), kind] {
                bytes.extend(word.to_ne_bytes());
            }
            for part in [name, desc] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let notes = [note(1, b"GNU\0", &[9; 5]), note(3, b"GNU\0", &[7; 20])].concat();
        assert_eq!(find_build_id(&notes), Some(vec![7; 20]));
        for cut in 0..notes.len() {
            assert_eq!(find_build_id(&notes[..cut]), None);
        }
    }
}
