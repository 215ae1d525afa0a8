//! Loaded images: the image that contains an address, the identity of its build, and the constructors of the program.
//!
//! The address of a function differs from process to process (address space randomisation). Its offset from the load address of
//! its image does not, as long as both processes loaded the same build of the image. `dl_iterate_phdr(3)` reports load
//! addresses and program headers; the linker's build id (note `NT_GNU_BUILD_ID` of the ELF `PT_NOTE` segment) identifies a
//! build.
//!
//! | user | for |
//! |---|---|
//! | `function.rs`, in the parent | [`locate`]: the address of a function becomes a [`Location`], which is sent to a child |
//! | `function.rs`, in the child | [`resolve`]: the location becomes an address again |
//! | `process/boot.rs` | `constructors_after`, `is_in_program`: an executed child runs the constructors, and no `main` |
//! | `sys/prefault.rs` | [`common_code`]: the code that the zygote's children run |
//!
//! The program itself is looked up once and kept, since it is never unloaded; a child of the zygote inherits the result.
//! Libraries are looked up again at each call, since a program may load and unload them. A library that [`resolve`] loads stays
//! loaded.
//!
//! [`resolve`] checks that build ids are equal and that the address is in an executable segment. It cannot check that a
//! function begins there, or of what type it is: the sender must be trusted (SAFETY.md, 1). A program without a build id is
//! compared as equal, as parent and child execute the same file; a library without one is refused by [`locate`].

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

/// The type of the note that contains the build id (`elf.h`).
const NT_GNU_BUILD_ID: u32 = 3;

/// An address that another process which loaded the same image can find again. Travels in the encoding of `function.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// Path of a shared library, as the dynamic linker reports it and as `dlopen` finds it; `None` is the program itself.
    pub(crate) library: Option<CString>,
    /// Bytes from the load address of the image. A receiver checks that it is in the code of the image.
    pub(crate) offset: u64,
    /// The linker's build id of the image, empty where it wrote none: then `library` is `None`.
    pub(crate) build_id: Vec<u8>,
}

/// A function of this process cannot be named for other processes, or a named function cannot be found in this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// The address is not in the code of a loaded image: the function was generated at run time. Reported where the function is
    /// named.
    #[error(
        "the function at {address:#x} is not in the program or a loaded library, so other processes cannot find it"
    )]
    NotInAnImage {
        /// The address looked for.
        address: usize,
    },
    /// A shared library has no build id, so it cannot be told from another build of it. Reported where the function is named.
    #[error(
        "the library {path} has no build id, so other processes cannot identify its functions: link it with `--build-id`"
    )]
    NoBuildId {
        /// Path of the library.
        path: String,
    },
    /// The child could not load the library that contains the function, or the dynamic linker lists it under another path.
    #[error("could not load the library {path}: {reason}")]
    NotLoadable {
        /// Path of the library.
        path: String,
        /// What the dynamic linker said.
        reason: String,
    },
    /// The child runs another build of the image than its parent: the file was replaced, or the program that it executes was
    /// set wrongly.
    #[error("cannot find a function of the parent: this process has another build of {path}")]
    OtherBuild {
        /// Path of the image.
        path: String,
    },
    /// The offset is not in the code of the image. Between processes of the same build, only a forged name causes this.
    #[error("cannot find a function of the parent: offset {offset:#x} is not in the code of {path}")]
    NotCode {
        /// Path of the image.
        path: String,
        /// The offset looked for.
        offset: u64,
    },
}

/// One image as the dynamic linker shows it during one call of `dl_iterate_phdr`. Valid only in the call-back of
/// [`find_image`], in which the dynamic linker holds its lock: outside it, another thread may unload the image.
struct Image<'a> {
    /// The position in the list of images. The program itself is the first, 0.
    index: usize,
    /// The path under which the image was loaded; empty for the program itself.
    name: &'a CStr,
    /// The load address: the difference between addresses in memory and in the file. 0 for a program that is not relocated.
    base: usize,
    /// The program headers of the image.
    headers: &'a [libc::Elf64_Phdr],
}

impl Image<'_> {
    /// Returns whether this is the program itself.
    fn is_main(&self) -> bool {
        self.index == 0
    }

    /// Returns the program headers of one kind (`PT_LOAD`, `PT_NOTE`, ...).
    fn segments(&self, kind: u32) -> impl Iterator<Item = &libc::Elf64_Phdr> {
        self.headers.iter().filter(move |header| header.p_type == kind)
    }

    /// Returns the addresses of the executable segments in this process.
    fn code_segments(&self) -> impl Iterator<Item = Range<usize>> {
        self.segments(libc::PT_LOAD).filter(|header| header.p_flags & libc::PF_X != 0).map(|header| {
            let start = self.base.wrapping_add(to_usize(header.p_vaddr));
            start..start.wrapping_add(to_usize(header.p_memsz))
        })
    }

    /// Returns whether `address` is in an executable segment. Constants and data of the image are not code: an address of data
    /// has no name.
    fn has_code_at(&self, address: usize) -> bool {
        self.code_segments().any(|segment| segment.contains(&address))
    }

    /// Returns the bytes of one loaded segment, which must be readable and never written: a note segment.
    fn bytes(&self, header: &libc::Elf64_Phdr) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.base.wrapping_add(to_usize(header.p_vaddr)));
        // SAFETY: a note segment is part of a read-only PT_LOAD segment, which stays mapped while the image is loaded;
        // the dynamic linker holds its lock during `dl_iterate_phdr`, and `self` does not outlive the call-back.
        unsafe { std::slice::from_raw_parts(start, to_usize(header.p_memsz)) }
    }

    /// Returns the build id, empty if the linker wrote none.
    fn build_id(&self) -> Vec<u8> {
        self.segments(libc::PT_NOTE).find_map(|header| find_build_id(self.bytes(header))).unwrap_or_default()
    }

    /// Copies the parts that are needed after the call-back. Allocates, and reads the notes of the image.
    fn code(&self) -> Code {
        Code {
            library: (!self.is_main()).then(|| self.name.to_owned()),
            base: self.base,
            segments: self.code_segments().collect(),
            build_id: self.build_id(),
        }
    }
}

/// A copy of the parts of an [`Image`] by which its functions are named and found. Outlives the call-back; its addresses are
/// valid while the image is loaded.
#[derive(Debug)]
struct Code {
    /// As [`Location::library`].
    library: Option<CString>,
    /// As [`Image::base`].
    base: usize,
    /// The addresses of the executable segments.
    segments: Vec<Range<usize>>,
    /// As [`Location::build_id`].
    build_id: Vec<u8>,
}

impl Code {
    /// Returns whether `address` is in the code of the image.
    fn contains(&self, address: usize) -> bool {
        self.segments.iter().any(|segment| segment.contains(&address))
    }

    /// Returns the location of `address`; `None` if it is not in the code of the image.
    fn locate(&self, address: usize) -> Option<Location> {
        let offset = address.wrapping_sub(self.base) as u64;
        self.contains(address).then(|| Location {
            library: self.library.clone(),
            offset,
            build_id: self.build_id.clone(),
        })
    }

    /// Returns the address of `location`, whose image the caller has found to be this one.
    ///
    /// # Errors
    /// [`FunctionError::OtherBuild`] if the build ids differ, [`FunctionError::NotCode`] if the address is not in the code.
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

/// Returns the program itself, looked up once: it stays where it is. A child of the zygote inherits the value.
///
/// # Panics
/// If the dynamic linker reports no image, which none does.
fn program() -> &'static Code {
    static PROGRAM: OnceLock<Code> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        find_image(|image| ControlFlow::Break(image.code())).expect("the dynamic linker shows the program first")
    })
}

/// Converts a number of a 64-bit ELF header.
///
/// # Panics
/// Never on the supported systems, where both types have 64 bits.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("polyproc runs on 64-bit Linux")
}

/// Returns the build id in the bytes of a note segment; `None` if there is none, or the notes are malformed. (ELF
/// specification, "Note Section": three 4-byte words, the lengths of name and descriptor and the type; then both, each padded
/// to 4 bytes.)
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

/// Calls `visit` for every loaded image, the program first, until it breaks. Returns the value of the break.
///
/// The dynamic linker holds its lock meanwhile. So `visit` must not load or unload a library; it must not panic either, as a
/// panic cannot unwind through the dynamic linker and aborts the process.
fn find_image<T>(visit: impl FnMut(&Image<'_>) -> ControlFlow<T>) -> Option<T> {
    /// The state of one call, to which the call-back gets a pointer: `index` counts the images that were shown, `found` is the
    /// value of the break.
    struct Walk<T, V> {
        visit: V,
        index: usize,
        found: Option<T>,
    }
    /// The call-back: shows one image to `visit`. Returns 1 to end the walk.
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
    /// Returns the call-back for the type of a closure, which cannot be named.
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

/// Names `address` so that a process with the same images can [`resolve`] it. `address` is that of a function of this process.
///
/// # Errors
/// [`FunctionError::NotInAnImage`] if it is in no image; [`FunctionError::NoBuildId`] if it is in a library without a build id.
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

/// Returns the address in this process that `location` names. Loads the library if it is not loaded yet, which runs its
/// constructors; its symbols are not added to the global scope (`RTLD_LOCAL`).
///
/// # Errors
/// [`FunctionError::NotLoadable`], [`FunctionError::OtherBuild`], [`FunctionError::NotCode`].
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

/// Returns the addresses of the code of the program and of libc, which all children run. libc is the image with `malloc`; a
/// program that replaces its allocator by a library gets that library instead.
pub(crate) fn common_code() -> Vec<Range<usize>> {
    let libc = find_image(|image| match image.has_code_at(libc::malloc as *const () as usize) {
        true => ControlFlow::Break(image.code()),
        false => ControlFlow::Continue(()),
    });
    // One and the same in a static program: looked at twice, changed once.
    program().segments.iter().cloned().chain(libc.into_iter().flat_map(|libc| libc.segments)).collect()
}

/// Returns whether `address` belongs to the code of the program itself, not to a shared library. Constructors of a library that
/// uses the engine may run while `main` runs.
#[cfg(feature = "auto-init")]
pub(crate) fn is_in_program(address: usize) -> bool {
    program().contains(address)
}

/// A constructor as the dynamic linker calls it: `argc`, `argv`, `envp`. An entry of `.init_array` (ELF), which libc runs
/// before `main`.
#[cfg(feature = "auto-init")]
pub(crate) type Constructor =
    unsafe extern "C" fn(c_int, *const *const std::ffi::c_char, *const *const std::ffi::c_char);

/// Returns the program's constructors that come after `own` in its `.init_array`, in their order. Returns none for a static
/// program without relocation, whose dynamic section is missing, or if `own` is not in the array.
#[cfg(feature = "auto-init")]
pub(crate) fn constructors_after(own: Constructor) -> Vec<Constructor> {
    /// An entry of the dynamic section (`Elf64_Dyn` of `elf.h`). A tag of 0 ends the section.
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
