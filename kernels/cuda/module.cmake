# The CUDA backend: a module that the programs open at run time, once compiled by nvcc (where there
# is one) and once, for the tests, by the C++ compiler with the emulation of kernels/cuda_emu.
# DMS_CUDA=OFF leaves absent.c instead; AUTO builds what can be built and says what cannot.
set(dms_has_cuda OFF)
set(dms_has_cuda_emu OFF)
string(TOUPPER "${DMS_CUDA}" dms_cuda_asked)
if(NOT dms_cuda_asked MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DMS_CUDA is ${DMS_CUDA}, expected AUTO, ON or OFF")
endif()
if(dms_cuda_asked STREQUAL OFF)
  target_sources(dms_kernels PRIVATE kernels/cuda/absent.c)
  return()
endif()
include(${CMAKE_CURRENT_LIST_DIR}/archs.cmake)

set(places HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda)
find_path(DMS_CUDA_INCLUDE cublasLt.h ${places} PATH_SUFFIXES include)
find_path(DMS_CUDNN_INCLUDE cudnn_graph.h ${places} PATH_SUFFIXES include) # of cuDNN 9
find_program(DMS_NVCC nvcc ${places} PATH_SUFFIXES bin)

# Why the module of nvcc is not built; empty: it is.
set(missing)
if(NOT DMS_CUDA_INCLUDE)
  set(missing "cublasLt.h was not found; set CUDA_HOME")
elseif(NOT DMS_CUDNN_INCLUDE)
  set(missing "cudnn_graph.h (cuDNN 9) was not found; set CUDA_HOME")
elseif(NOT DMS_NVCC)
  set(missing "nvcc was not found; set CUDA_HOME")
elseif(DMS_SANITIZE)
  set(missing "this build has sanitizers")
else()
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES ${DMS_CUDA_ARCHS})
  set(CMAKE_CUDA_STANDARD 17)
  set(ENV{CUDACXX} ${DMS_NVCC})
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(missing "${DMS_NVCC} does not compile (for ${DMS_CUDA_ARCHS}; DMS_CUDA_ARCHS names others)")
  endif()
endif()
if(missing AND dms_cuda_asked STREQUAL ON)
  message(FATAL_ERROR "DMS_CUDA=ON, but ${missing}")
endif()

target_sources(dms_kernels PRIVATE kernels/cuda/module.c)
target_link_libraries(dms_kernels PUBLIC ${CMAKE_DL_LIBS})
set(CMAKE_ENABLE_EXPORTS ON) # a module reports its failures through the program's status.c

file(GLOB cuda_kernels CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB cuda_host CONFIGURE_DEPENDS kernels/cuda/*.c)
list(FILTER cuda_host EXCLUDE REGEX "cuda/(absent|module)\\.c$")

# Of our own names only those of status.c may be left to the program: an op that is forgotten fails
# the build.
function(dms_cuda_module target)
  add_library(${target} MODULE ${ARGN})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(${target} SYSTEM PRIVATE ${DMS_CUDA_INCLUDE} ${DMS_CUDNN_INCLUDE})
  set_target_properties(${target} PROPERTIES C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden
    CUDA_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  add_custom_command(TARGET ${target} POST_BUILD VERBATIM COMMAND sh -c
    "left=$(nm -D --undefined-only $<TARGET_FILE:${target}> | grep -o 'dms_[a-z0-9_]*' | grep -vxE 'dms_(fail_at|trail_add|trail_note|error_text|error_message)'); [ -z \"$left\" ] || { echo \"${target} lacks\" $left; rm -f $<TARGET_FILE:${target}>; exit 1; }")
endfunction()

if(missing)
  message(STATUS "CUDA backend left out: ${missing}")
else()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(dms_has_cuda ON)
  dms_cuda_module(dms_cuda ${cuda_kernels} ${cuda_host})
  # A kernel that spills its registers is a bug of ours.
  target_compile_options(dms_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:C>:-Wall$<SEMICOLON>-Wextra$<SEMICOLON>-Wshadow$<SEMICOLON>-Wconversion>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-warn-spills$<$<BOOL:${DMS_WERROR}>:,-Werror>>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${DMS_WERROR}>>:-Werror=all-warnings>)
  target_link_libraries(dms_cuda PRIVATE CUDA::cudart_static CUDA::cublasLt)
  set_target_properties(dms_cuda PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS dms_cuda LIBRARY DESTINATION lib/dms)
  message(STATUS "CUDA backend built for compute capabilities ${DMS_CUDA_ARCHS}")
endif()

if(DMS_TESTS AND DMS_CUDA_INCLUDE AND DMS_CUDNN_INCLUDE)
  enable_language(CXX)
  set(CMAKE_CXX_STANDARD 17)
  set(dms_has_cuda_emu ON)
  set(emulated)
  foreach(source ${cuda_kernels})
    get_filename_component(name ${source} NAME)
    set(wrapper ${PROJECT_BINARY_DIR}/cuda_emu/${name}.cpp)
    file(GENERATE OUTPUT ${wrapper} CONTENT "#include \"kernels/cuda/${name}\"\n")
    list(APPEND emulated ${wrapper})
  endforeach()
  file(GLOB emulator CONFIGURE_DEPENDS kernels/cuda_emu/*.cpp)
  list(FILTER cuda_host EXCLUDE REGEX "cudnn_load\\.c$") # kernels/cuda_emu/cudnn.cpp has its own
  dms_cuda_module(dms_cuda_emu ${emulated} ${cuda_host} ${emulator})
  target_compile_definitions(dms_cuda_emu PRIVATE DMS_CUDA_EMULATED)
  target_compile_options(dms_cuda_emu PRIVATE -O2 -fno-math-errno -ffp-contract=off -Wall -Wno-unknown-pragmas
    -Wno-attributes $<$<BOOL:${DMS_WERROR}>:-Werror>)
  find_package(Threads REQUIRED)
  target_link_libraries(dms_cuda_emu PRIVATE Threads::Threads m)
endif()
