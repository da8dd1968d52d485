// A chat by wasi-nn as the crate wasmedge-wasi-nn calls it: the imports, by hand, and its structs.
#[link(wasm_import_module = "wasi_ephemeral_nn")]
extern "C" {
    fn load_by_name_with_config(name: *const u8, n: usize, config: *const u8, m: usize, graph: *mut u32) -> u32;
    fn init_execution_context(graph: u32, context: *mut u32) -> u32;
    fn set_input(context: u32, index: u32, tensor: *const Tensor) -> u32;
    fn compute(context: u32) -> u32;
    fn compute_single(context: u32) -> u32;
    fn fini_single(context: u32) -> u32;
    fn get_output(context: u32, index: u32, buffer: *mut u8, cap: u32, nbytes: *mut u32) -> u32;
    fn get_output_single(context: u32, index: u32, buffer: *mut u8, cap: u32, nbytes: *mut u32) -> u32;
}

#[repr(C)]
struct Tensor<'a> {
    dimensions: *const u32,
    n_dimensions: usize,
    kind: u8,
    data: *const u8,
    nbytes: usize,
    _of: std::marker::PhantomData<&'a [u8]>,
}

const END_OF_SEQUENCE: u32 = 100;
const MAX_OUTPUT: usize = 4096 * 6;

fn check(what: &str, errno: u32) {
    assert!(errno == 0, "{what} gave {errno}");
}

fn input(context: u32, index: u32, data: &[u8]) {
    let tensor = Tensor {
        dimensions: [1u32].as_ptr(),
        n_dimensions: 1,
        kind: 3,
        data: data.as_ptr(),
        nbytes: data.len(),
        _of: std::marker::PhantomData,
    };
    check("set_input", unsafe { set_input(context, index, &tensor) });
}

fn output(get: unsafe extern "C" fn(u32, u32, *mut u8, u32, *mut u32) -> u32, context: u32, index: u32) -> String {
    let (mut buffer, mut nbytes) = (vec![0u8; MAX_OUTPUT], 0u32);
    check("get_output", unsafe { get(context, index, buffer.as_mut_ptr(), MAX_OUTPUT as u32, &mut nbytes) });
    let end = MAX_OUTPUT.min(nbytes as usize);
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (name, prompt) = (&arguments[1], &arguments[2]);
    let option = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let n_predict = option("n_predict").unwrap_or(8) as usize;
    let config = format!(
        "{{\"ctx-size\":{},\"n-predict\":{},\"n-gpu-layers\":100,\"temp\":{},\"presence-penalty\":0.0,\"frequency-penalty\":0.0}}",
        option("ctx_size").unwrap_or(256), n_predict, std::env::var("temp").unwrap_or("0.8".into())
    );
    let (mut graph, mut context) = (0, 0);
    unsafe {
        check("load", load_by_name_with_config(name.as_ptr(), name.len(), config.as_ptr(), config.len(), &mut graph));
        check("init_execution_context", init_execution_context(graph, &mut context));
    }
    input(context, 1, config.as_bytes());
    input(context, 0, prompt.as_bytes());
    check("compute", unsafe { compute(context) });
    println!("{}", output(get_output, context, 0));
    let mut said = String::new();
    for _ in 0..n_predict {
        match unsafe { compute_single(context) } {
            0 => said += &output(get_output_single, context, 0),
            END_OF_SEQUENCE => break,
            errno => check("compute_single", errno),
        }
    }
    println!("{}", said);
    println!("{}", output(get_output, context, 1));
    check("fini_single", unsafe { fini_single(context) });
    std::process::exit(0);
}
